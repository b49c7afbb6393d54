"""Statistics of batch norms measured anew, and batch norms folded into layers."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from secateur.framework.network.batch_norm import folded, measured_statistics, running_statistics
from secateur.framework.pruning.scoring.gates.linearity import operations
from tests.networks import ConvNet, images, randomise, same, seeded, snapshot


def test_statistics_are_those_of_the_batches_and_leave_no_trace() -> None:
    model = randomise(seeded(ConvNet)).double()
    batches = [images(5, seed=seed, dtype=torch.float64) for seed in range(3)]
    before = snapshot(model)
    found = measured_statistics(model, [*batches, batches[0][:1]])
    assert same(snapshot(model), before) and model.training
    twin = copy.deepcopy(model)
    for norm in (twin.na, twin.nb, twin.nc):
        norm.momentum = None
        norm.reset_running_stats()
    for batch in batches:
        twin.train()(batch)
    for one, other in zip(found, running_statistics(twin), strict=True):
        torch.testing.assert_close(one, other)


NAMES = {"conv": "norm", "line": "after"}


def _normed() -> nn.Module:
    layers = {
        "conv": nn.Conv2d(1, 3, 3, bias=False), "norm": nn.BatchNorm2d(3), "relu": nn.ReLU(inplace=True),
        "flat": nn.Flatten(), "line": nn.Linear(108, 4), "after": nn.BatchNorm1d(4, affine=False),
    }  # fmt: skip
    return randomise(nn.Sequential(OrderedDict(layers)).double()).eval()


def test_a_folded_copy_computes_the_same_without_a_norm_and_leaves_the_network_alone() -> None:
    model = _normed()
    before, data = snapshot(model), torch.rand(5, 1, 8, 8, dtype=torch.float64)
    outputs = model(data)
    twin = folded(model, NAMES)
    torch.testing.assert_close(twin(data), outputs, rtol=1e-12, atol=1e-12)
    assert "BatchNorm" not in " ".join(node.name() for node in operations([twin(data)]))
    assert same(before, snapshot(model)) and torch.equal(model(data), outputs)


@pytest.mark.parametrize("change", ["hook of the layer", "hook of the norm", "parametrized", "own class"])
def test_what_is_not_torchs_own_layer_and_norm_is_not_folded(change: str) -> None:
    model = _normed()
    if change.startswith("hook"):
        module = model.get_submodule("conv" if "layer" in change else "norm")
        module.register_forward_hook(lambda *given: 2 * given[-1])
    elif change == "parametrized":
        weight_norm(model.get_submodule("conv"))
    else:
        model.get_submodule("norm").__class__ = type("Own", (nn.BatchNorm2d,), {})
    data = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    twin = folded(model, NAMES)
    torch.testing.assert_close(twin(data), model(data), rtol=1e-12, atol=1e-12)
    assert sum("BatchNorm" in node.name() for node in operations([twin(data)])) == 1
