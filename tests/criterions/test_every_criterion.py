"""Every criterion by tracked scores, and every one of channels every few batches."""

import pytest
import torch

from secateur.framework.network.size import weight_sparsity
from secateur.framework.plugins.registry import build, option_names, registry
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Criterion, Data
from secateur.framework.pruning.steps.averages import Tracking
from secateur.framework.pruning.steps.by_schedule import AtMoments, pruner_for
from secateur.framework.schedules.base import Never
from secateur.framework.schedules.every_n_batches import Iterative
from tests.networks import same
from tests.short_runs import trained

CRITERIONS = [
    name for name in registry.names("criterions") if registry.describe("criterions", name).when != "never"
]
CHANNELS = [name for name in CRITERIONS if registry.describe("criterions", name).granularity == "channel"]


def made(name: str) -> Criterion:
    """The criterion, with few samples, and a share to reach where its own threshold would decide."""
    few = {"samples": 10} if "samples" in option_names(registry.get("criterions", name)) else {}
    found: Criterion = build("criterions", name, **few)
    found.threshold = None
    if found.data.kind != "none" and not few:
        found.__dict__["data"] = Data("random", batches=1)
    return found


@pytest.mark.parametrize("name", CHANNELS)
def test_every_criterion_of_channels_prunes_every_few_batches_in_exact_numbers(name: str) -> None:
    pruner = pruner_for(made(name), Iterative(frequency=2, per_step=3, maximum=2), 0.5, 2)
    trainer = trained(pruner, epochs=2)
    assert [event.removed for event in pruner.events] == [3, 3]
    assert sum(group.channels for group in free_groups(pruner.groups).values()) == 24 - 6
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("name", [name for name in CRITERIONS if name not in CHANNELS])
def test_every_other_criterion_prunes_every_few_batches_down_to_the_limit(name: str) -> None:
    pruner = pruner_for(made(name), Iterative(frequency=2, maximum=2), 0.5, 2)
    trainer = trained(pruner, epochs=2)
    assert [event.asked for event in pruner.events] == [0.25, 0.5]
    assert weight_sparsity(trainer.model) == pytest.approx(0.5, abs=0.03)  # one channel of CNIP, rows of Wanda
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("name", CRITERIONS)
def test_every_criterion_can_be_tracked_and_that_is_pure(name: str) -> None:
    tracked = AtMoments(made(name), {1: [0.5]}, tracking=Tracking(2))
    model = trained(tracked, epochs=2).model
    assert len(tracked.events) == 1 and tracked.events[0].reached == pytest.approx(0.5, abs=0.03)
    again = AtMoments(made(name), {1: [0.5]}, tracking=Tracking(2))
    assert same(trained(again, epochs=2).model.state_dict(), model.state_dict())


def test_nothing_is_left_out_but_what_prunes_nothing() -> None:
    left = set(registry.names("criterions")) - set(CRITERIONS)
    assert all(isinstance(registry.get("criterions", name).schedule, Never) for name in left)
