"""Another tool as the oracle: Torch-Pruning finds its groups by gradient functions, ours come from labels."""

from collections import Counter

import pytest
import torch
import torch_pruning
from torch import nn

from secateur.framework.network.layers import PRUNABLE
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.utils.vision import torchvision
from tests.networks import images, seeded

Together = Counter[frozenset[str]]


def theirs(model: nn.Module, inputs: torch.Tensor) -> Together:
    """For each group of Torch-Pruning the layers whose outputs go together."""
    graph = torch_pruning.DependencyGraph().build_dependency(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    found: Together = Counter()
    for group in graph.get_all_groups(root_module_types=list(PRUNABLE)):
        outputs = {
            names[dependency.target.module]
            for dependency, _ in group
            if isinstance(dependency.target.module, PRUNABLE)
            and graph.is_out_channel_pruning_fn(dependency.handler)
        }
        found[frozenset(outputs)] += 1
    return found


def ours(model: nn.Module, inputs: torch.Tensor) -> Together:
    """For each of our groups the layers whose outputs go together."""
    return Counter(frozenset(group.layers) for group in channel_groups(model, inputs).values())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vgg11_bn",
        "mobilenet_v2",
        "densenet121",
        "squeezenet1_1",
        "efficientnet_b0",
    ],
)
def test_the_same_layers_go_together_as_in_torch_pruning(name: str) -> None:
    model = seeded(lambda: torchvision().models.get_model(name, weights=None, num_classes=4)).eval()
    inputs = images(1, size=64)
    expected = theirs(model, inputs)
    assert sum(expected.values()) > 8
    assert ours(model, inputs) == expected
