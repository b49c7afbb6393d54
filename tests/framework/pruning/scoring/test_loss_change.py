"""The corrected outputs themselves, without the fallback that hides a wrong correction from the scores."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.ablation.loss_change import _Network
from tests.networks import ConvNet, Net, ResNet, images, masked, mlp, randomise, seeded


def grouped() -> nn.Module:
    """A convolution in two groups reads the channels: its output is computed again and not corrected."""
    return Net(
        lambda self, x: self.c(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 3, groups=2, stride=2), c=nn.Linear(6, 5),
    )  # fmt: skip


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (ConvNet, images(7, dtype=torch.float64)),
    "residual": (ResNet, images(7, dtype=torch.float64)),
    "grouped": (grouped, images(7, dtype=torch.float64)),
    "linear": (mlp, torch.randn(7, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("size", [1, 2])
def test_the_corrected_loss_is_that_of_a_network_without_the_channels(net: str, size: int) -> None:
    make, inputs = NETS[net]
    model, targets = randomise(seeded(make)).double().eval(), torch.arange(7) % 4
    groups = free_groups(channel_groups(model, inputs))
    assert groups
    with torch.no_grad():
        network = _Network(model, inputs)
        before = F.cross_entropy(model(inputs), targets)
        for name, group in groups.items():
            sets = torch.combinations(torch.arange(group.channels), size)
            sets = sets[:: 1 + len(sets) // 4]
            assert network.proves(group)
            found = network.changes(group, sets, targets, F.cross_entropy, apart=True)
            for channels, change in zip(sets, found, strict=True):
                keep = torch.ones(group.channels, dtype=torch.bool)
                keep[channels] = False
                twin = masked(model, {name: keep}, groups)
                expected = F.cross_entropy(twin(inputs), targets) - before
                torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-13)
