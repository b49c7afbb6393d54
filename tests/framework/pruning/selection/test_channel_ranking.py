"""Floors, thresholds and shares of single layers, number by number."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.selection.budgets import Nodes
from secateur.framework.pruning.selection.channel_ranking import ChannelRanking
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.search import to_budget
from tests.networks import ConvNet, images, seeded

UNITS = {"a": 6, "b": 8, "c": 10}


@pytest.fixture
def traced() -> tuple[nn.Module, Groups]:
    model = seeded(ConvNet)
    return model, free_groups(channel_groups(model, images()))


def rising() -> dict[str, Tensor]:
    return {name: torch.arange(1.0, count + 1) for name, count in UNITS.items()}


@pytest.mark.parametrize(
    ("share", "floors"),
    [(0.0, [1, 1, 1]), (0.3, [2, 3, 3]), (0.5, [3, 4, 5]), (0.55, [4, 5, 6]), (0.7, [5, 6, 7])],
)
def test_of_each_layer_at_least_the_share_stays_rounded_up(
    traced: tuple[nn.Module, Groups], share: float, floors: list[int]
) -> None:
    assert list(PruneOptions(keep_share=share).floors(*traced).values()) == floors


@pytest.mark.parametrize(("share", "floor"), [(0.28, 7), (0.56, 14), (0.57, 15)])
def test_a_share_that_is_a_whole_number_of_channels_is_not_rounded_up(share: float, floor: int) -> None:
    """0.28 * 25 is 7.000000000000001 in floating point."""
    model = nn.Sequential(nn.Linear(4, 25), nn.ReLU(), nn.Linear(25, 3))
    groups = free_groups(channel_groups(model, torch.zeros(1, 4)))
    assert list(PruneOptions(keep_share=share).floors(model, groups).values()) == [floor]


def test_a_group_that_cannot_be_removed_keeps_a_channel_whatever_the_floor(
    traced: tuple[nn.Module, Groups],
) -> None:
    model, groups = traced
    held = {name: replace(group, removable=name != "b") for name, group in groups.items()}
    assert PruneOptions(min_channels=0).floors(model, held) == {"a": 0, "b": 1, "c": 0}
    keep = ChannelRanking(model, held, rising(), PruneOptions(min_channels=0)).first(24)
    assert {name: int(mask.sum()) for name, mask in keep.items()} == {"a": 0, "b": 1, "c": 0}


def test_what_lies_at_the_threshold_goes(traced: tuple[nn.Module, Groups]) -> None:
    keep = ChannelRanking(*traced, rising(), PruneOptions()).above(4.0)
    assert {name: mask.tolist() for name, mask in keep.items()} == {
        name: [False] * 4 + [True] * (count - 4) for name, count in UNITS.items()
    }


@pytest.mark.parametrize(("share", "gone"), [(0.35, [2, 3, 4]), (0.65, [4, 5, 6]), (0.25, [2, 2, 2])])
def test_by_layer_each_loses_its_own_rounded_share(
    traced: tuple[nn.Module, Groups], share: float, gone: list[int]
) -> None:
    """Though 8 of all 24 would be nearer to 0.35 than the 9 that the layers add up to."""
    model, groups = traced
    ranking = ChannelRanking(model, groups, rising(), PruneOptions("layer"))
    keep = to_budget(ranking, Nodes(model, groups), share)
    assert [int((~mask).sum()) for mask in keep.values()] == gone


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.32, 0.55, 0.6, 0.86])
def test_the_number_of_channels_is_the_nearest_and_not_the_next_one(
    traced: tuple[nn.Module, Groups], share: float
) -> None:
    """Below the share as often as above it: 7 of 24 are nearer to 0.3 than 8."""
    model, groups = traced
    keep = to_budget(ChannelRanking(model, groups, rising(), PruneOptions()), Nodes(model, groups), share)
    assert keep.removed == min(range(22), key=lambda count: abs(count / 24 - share))
