"""Every channel criterion on residual networks: what is cut computes what is masked."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import registry
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.selection.options import PruneOptions
from tests.networks import ResNet, channel_masks, images, masked, pruning_step, randomise, seeded, shipped

CHANNEL = [
    name
    for name in registry.names("criterions")
    if registry.describe("criterions", name).granularity in ("channel", "both")
]


def cut_is_masked(name: str, model: nn.Module, size: int, share: float) -> None:
    """Prune that share of the network's nodes or weights, and mask the same in a twin."""
    x = images(6, size=size)
    batches = [(x, torch.arange(6) % 4)]
    groups, twin = channel_groups(model, x), copy.deepcopy(model)
    criterion = build("criterions", name)
    ranks = type(criterion).input_scores is not Criterion.input_scores and criterion.granularity == "channel"
    step = pruning_step(model, criterion, x, PruneOptions(rank_inputs=ranks))
    if criterion.threshold is not None:  # one that some channels are below
        scores = criterion.score(model, batches, F.cross_entropy, groups)
        criterion.threshold = float(torch.cat(list(scores.values())).median())
    event = step(share, batches, F.cross_entropy)
    channels = {key: mask for key, mask in event.keep.items() if key in groups}
    assert sum(int((~mask).sum()) for mask in channels.values()) > 0
    twin = masked(twin, channels, groups)
    weights = {key: mask for key, mask in event.keep.items() if key not in groups}
    Masks(twin).hold(weights)
    if event.inputs is not None:
        first = next(module for module in twin.modules() if isinstance(module, nn.Conv2d))
        first.weight.data.mul_(event.inputs.view(1, -1, 1, 1))
    assert channel_masks(twin, channels, groups)
    with torch.no_grad():
        found, expected = model.eval()(x), twin.eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    if criterion.threshold is None:
        assert event.reached == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("name", CHANNEL)
def test_a_small_residual_network_is_cut_as_it_is_masked(name: str) -> None:
    cut_is_masked(name, randomise(seeded(ResNet)), 8, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in CHANNEL if name != "Combinatorial"]
)  # too many pairs: it says so
def test_resnet18_is_cut_as_it_is_masked(name: str) -> None:
    # beside single weights, whole channels go only late: their scores are sums over thousands of weights
    share = 0.98 if name.startswith("CNIP") else 0.5
    cut_is_masked(name, shipped("ResNet18", in_channels=3, num_classes=10, image_size=16), 16, share)
