"""What is counted of a network that lost channels and weights: exact numbers of the dense one."""

from pathlib import Path

import torch
from torch import nn

from secateur import prune
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import count_macs
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.selection.budgets import Entries, Macs, dense_macs
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.storage.checkpoint import load_model, save_model
from tests.networks import ConvNet, ResNet, images, random_keep, randomise, seeded


def test_weights_in_channels_that_were_cut_and_masked_weights_are_gone_alike() -> None:
    model = seeded(ConvNet)
    groups = channel_groups(model, images(1))
    cut(model, {"b": torch.arange(8) < 5}, groups)  # 3 filters of 6 * 9, and 4 places each in 10 rows
    keep = torch.ones(6, 3, 3, 3, dtype=torch.bool)
    keep[:2, 1] = False
    bias = torch.zeros(6, dtype=torch.bool)  # no prunable weight
    Masks(model).hold({"a.weight": keep, "a.bias": bias})
    pruned, dense = 3 * 54 + 3 * 4 * 10 + 2 * 9, 162 + 432 + 320 + 50
    assert Entries(model, {}, name="weights").now() == 1 - (dense - pruned) / dense
    assert prune(model, "Magnitude", 0.5, example_input=images(1)).events[0].removed == dense // 2 - pruned


def test_a_network_that_came_cut_from_a_file_knows_the_multiply_adds_of_the_dense_one(tmp_path: Path) -> None:
    for make in (ConvNet, ResNet):
        model, x = randomise(seeded(make)), images(1)
        dense = count_macs(model, x)[0]
        groups = channel_groups(model, x)
        groups = cut(model, random_keep(groups), groups)
        left = count_macs(model, x)[0]
        loaded = load_model(save_model(model, tmp_path / f"{make.__name__}.safetensors"), seeded(make))
        assert dense_macs(loaded, x) == dense > left
        budget = Macs(loaded, channel_groups(loaded, x), x)
        assert budget.now() == budget.predicted({}) == 1 - left / dense


def test_multiply_adds_between_activations_are_in_the_dense_network_s_too() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval(), torch.randn(2, 5, 8)
    # projections in, attention and its product with the values, projection out, and the two linear layers
    assert dense_macs(model, x) == 5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8 + 2 * 5 * 8 * 12
