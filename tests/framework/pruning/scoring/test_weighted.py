"""The wrapper that weights a criterion's scores of single weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import Criterion, prunable_weights
from secateur.framework.pruning.scoring.contract import held_to_contract, is_shipped
from secateur.framework.pruning.scoring.weighted import weighted
from secateur.utils.errors import UsageError


class Elements(Criterion):
    """The sizes of the weights, and a record of all calls."""

    granularity = "weight"
    scope = "layer"

    def __init__(self, *, scale: float = 2.0, change: Callable[[nn.Module], Any] | None = None) -> None:
        super().__init__(scale=scale, change=change)
        self.scale, self.change, self.calls = scale, change, list[str]()

    def start(self, model: nn.Module) -> None:
        self.calls.append("start")

    def check(self, model: nn.Module) -> None:
        self.calls.append("check")

    def cost(self, samples: int) -> float:
        return 7 * samples

    def element_scores(self, model: nn.Module, batches: Any, loss: Any, groups: Any) -> dict[str, Tensor]:
        if self.change is not None:
            self.change(model)
        self.calls.append(f"score {self.seed} {self.step}")
        return {name: self.scale * weight.detach().abs() for name, weight in prunable_weights(model).items()}

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        return self.element_scores(model, batches, loss, groups)


def test_it_has_the_attributes_of_the_criterion_and_calls_it() -> None:
    own, model = Elements(scale=3.0), nn.Linear(3, 2)
    criterion = weighted(own, by_size=True)
    assert (criterion.name, criterion.granularity, criterion.scope) == ("Elements", "weight", "layer")
    assert repr(criterion) == repr(own) and criterion.cost(2) == 14 and not criterion.uses_initial_weights
    criterion.seed, criterion.step = 5, 6
    criterion.check(model)
    criterion.start(model)
    scores = criterion.score(model, [], F.cross_entropy)
    assert own.calls == ["check", "start", "score 5 6"]
    torch.testing.assert_close(scores["weight"], 3 * model.weight.detach().square())


def test_it_leaves_the_criterion_as_it_was_and_a_copy_is_independent() -> None:
    own = Elements()
    criterion: Any = weighted(own, by_way=True)
    twin = copy.deepcopy(criterion)
    assert criterion.uses_initial_weights and twin.uses_initial_weights and not own.uses_initial_weights
    assert isinstance(twin, Elements) and type(own) is Elements
    twin.seed, twin.step, twin.example_input = 1, 2, torch.zeros(1)
    assert (criterion.seed, criterion.step, criterion.example_input) == (0, 0, None)
    twin.check(nn.Linear(3, 2))
    assert (twin.calls, criterion.calls) == (["check"], [])


def test_a_third_party_criterion_is_held_to_the_contract_in_it() -> None:
    criterion, model = (
        weighted(Elements(change=lambda model: model.weight.data.zero_()), by_size=True),
        nn.Linear(3, 2),
    )
    assert not is_shipped(criterion)
    before = model.weight.detach().clone()
    with pytest.raises(UsageError, match=r"Elements\.score changed"), held_to_contract(criterion, "score", model):
        criterion.score(model, [], F.cross_entropy)
    assert torch.equal(model.weight, before)
