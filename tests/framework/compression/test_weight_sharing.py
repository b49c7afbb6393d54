"""Weight sharing: few values in each layer, zeros stay zero, and centroids follow the summed gradient."""

import copy
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from secateur import Masks, UsageError, prunable_weights, share_weights
from secateur.framework.compression.weight_sharing import INITIAL, SharedWeights, cluster_nonzero


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(256, 5),
    )
    keep = {name: torch.rand(weight.shape) < 0.6 for name, weight in prunable_weights(model).items()}
    Masks(model).hold(keep)
    return model


@pytest.mark.parametrize("initial", INITIAL)
@pytest.mark.parametrize("layer", [nn.Linear(30, 40), nn.Conv1d(8, 9, 5), nn.Conv3d(3, 8, 3)])
def test_a_layer_has_at_most_two_to_the_bits_values(initial: str, layer: nn.Module) -> None:
    layer = copy.deepcopy(layer)
    before = layer.weight.detach().clone()  # type: ignore[union-attr]
    shared = share_weights(layer, 3, initial=initial)
    assert len(layer.weight.unique()) == len(shared["weight"]) == 8  # type: ignore[operator, union-attr]
    error = (layer.weight - before).square().mean()  # type: ignore[operator]
    assert float(error.detach()) < 0.03 * float(before.square().mean())  # type: ignore[operator]


def test_zeros_stay_zero_and_other_tensors_unchanged() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    shared = share_weights(model, 2, 4)
    assert {name: len(values) for name, values in shared.items()} == {
        "0.weight": 16,
        "3.weight": 16,
        "5.weight": 4,
    }
    for name, tensor in model.state_dict().items():
        if name in shared:
            assert torch.equal(tensor == 0, before[name] == 0)
            assert not bool(torch.signbit(tensor[tensor == 0]).any())
        else:
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_centroids_are_trained_as_parameters_of_their_own(optimizer: Any) -> None:
    """Against a layer whose weight is looked up in a table of centroids, differentiated by autograd."""
    torch.manual_seed(1)
    layer = nn.Linear(20, 10, bias=False).double()
    Masks(layer).hold({"weight": torch.rand(10, 20) < 0.5})
    shared = share_weights(layer, 3)
    centroids = nn.Parameter(shared["weight"].clone())
    index = torch.searchsorted(centroids.detach(), layer.weight.detach())
    zero = layer.weight.detach() == 0
    stepping, reference = optimizer(layer.parameters(), lr=0.01), optimizer([centroids], lr=0.01)
    Masks(layer).attach(stepping)
    shared.attach(stepping)
    for _ in range(5):
        inputs = torch.randn(16, 20, dtype=torch.float64)
        weight = torch.where(zero, 0.0, centroids[index.clamp(max=7)])
        for one, outputs in ((stepping, layer(inputs)), (reference, inputs @ weight.T)):
            one.zero_grad()
            outputs.square().mean().backward()
            one.step()
    torch.testing.assert_close(shared["weight"], centroids.detach())
    assert len(layer.weight.unique()) == 9 and torch.equal(layer.weight == 0, zero)


def test_hooks_can_be_removed_and_missing_gradients_are_fine() -> None:
    layer = nn.Linear(8, 8)
    shared = share_weights(layer, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    detach = shared.attach(optimizer)
    optimizer.step()
    detach()
    layer(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    assert len(layer.weight.unique()) > 2


def test_channels_last_weights_are_tied() -> None:
    layer = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    share_weights(layer, 2)
    assert len(layer.weight.unique()) == 4
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_clusters_are_those_of_k_means() -> None:
    values = numpy.concatenate([numpy.random.default_rng(0).normal(m, 0.01, 50) for m in (-1, -0.2, 0.3, 2)])
    centroids, cluster = cluster_nonzero(values, 4)
    numpy.testing.assert_allclose(centroids, values.reshape(4, 50).mean(1))
    assert cluster.tolist() == numpy.repeat(range(4), 50).tolist()


def test_few_values_keep_them_and_many_centroids_are_found_in_parts() -> None:
    centroids, cluster = cluster_nonzero(numpy.array([0.0, 2.0, -1.0, 2.0]), 4)
    assert centroids[cluster[1:]].tolist() == [2, -1, 2] and cluster[0] == -1
    assert cluster_nonzero(numpy.zeros(3), 4)[1].tolist() == [-1] * 3
    values = numpy.random.default_rng(0).normal(size=100_000)
    centroids, cluster = cluster_nonzero(values, 1024)
    assert 900 < len(centroids) <= 1024
    assert numpy.abs(centroids[cluster] - values).max() < 0.01


def test_all_zero_layers_are_left_alone() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    shared = share_weights(layer)
    layer.weight.grad = torch.ones(4, 4)
    shared.sum_gradients()
    shared.tie()
    assert not layer.weight.any() and not layer.weight.grad.any() and shared["weight"].shape == (0,)


def test_bad_arguments_are_refused_and_nothing_is_changed() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    for bits in (0, 17, 2.5, True, "5"):
        with pytest.raises(UsageError, match="bits must be a whole number from 1 to 16"):
            share_weights(model, bits)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bits_conv must be"):
        share_weights(model, 5, 0)
    with pytest.raises(UsageError, match="unknown initialisation 'liner': did you mean 'linear'"):
        share_weights(model, initial="liner")
    with pytest.raises(UsageError, match="no convolution or linear layer"):
        share_weights(nn.BatchNorm1d(3))
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(UsageError, match="'weight' contains NaN"):
        share_weights(broken)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(SharedWeights(model, {}), SharedWeights)
