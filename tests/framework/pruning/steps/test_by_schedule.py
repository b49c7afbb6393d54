from types import SimpleNamespace
from typing import Any

import pytest

from secateur.framework.plugins.registry import build
from secateur.framework.pruning.steps.by_schedule import AtMoments


@pytest.mark.parametrize(
    ("moments", "phases"),
    [
        ([2, 3], ["warmup"] * 2 + ["pruning"] * 2 + ["final"] * 2),
        ([-1], ["final"] * 6),
        ([-1, 1], ["pruning"] * 2 + ["final"] * 4),
    ],
)
def test_phases_end_with_the_first_and_the_last_pruning(moments: list[int], phases: list[str]) -> None:
    pruner = AtMoments(build("criterions", "L1"), dict.fromkeys(moments, [0.5]))
    trainers: list[Any] = [SimpleNamespace(epoch=epoch) for epoch in range(6)]
    assert [pruner.phase(trainer) for trainer in trainers] == phases
