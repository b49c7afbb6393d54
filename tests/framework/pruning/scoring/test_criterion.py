"""The contract's own parts: random numbers by seed and step, and what is no score."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.pruning.scoring.criterion import Criterion, check_scores
from secateur.utils.errors import UsageError
from tests.networks import mlp, seeded


class Plain(Criterion):
    """Of weights."""

    granularity = "weight"

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        """None."""
        return {}


def test_no_two_seeds_and_steps_near_each_other_draw_the_same_numbers() -> None:
    drawn = []
    for seed, step in itertools.product(range(6), range(6)):
        criterion = Plain()
        criterion.seed, criterion.step = seed, step
        drawn.append(torch.rand(4, generator=criterion.generator()))
        assert torch.equal(drawn[-1], torch.rand(4, generator=criterion.generator()))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == 36


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "4.weight"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_single_nan_anywhere_is_an_error_that_names_the_tensor(name: str, place: int) -> None:
    model = seeded(mlp)
    scores = {key: torch.ones_like(weight) for key, weight in prunable_weights(model).items()}
    scores[name].view(-1)[place] = torch.nan
    with pytest.raises(UsageError, match=f"Plain.score: '{name}' contains NaN"):
        check_scores(scores, model, None, Plain())
