"""Closed hard-concrete gates are cut: the smaller, plain network computes what the gated one does in eval mode."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers
from secateur.framework.network.lineage import lineage_of
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import weight_sparsity
from secateur.framework.pruning.channels.discovery import channel_groups, node_sparsity
from secateur.framework.pruning.gated_layers.hard_concrete import (
    LARGEST,
    SMALLEST,
    L0BatchNorm2d,
    L0Conv2d,
    L0Linear,
    l0_layers,
)
from secateur.framework.pruning.gated_layers.l0_network import Closed, add_l0_gates, cut_closed, without_gates
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.pruning.surgery.folding import foldable
from secateur.framework.storage.checkpoint import load_model, save_model
from tests.networks import ConvNet, Net, ResNet, images, mlp, randomise, seeded, shipped


def gated(model: nn.Module, sample: Tensor, share: float, seed: int = 0, **options: Any) -> nn.Module:
    """Hard-concrete gates of which about this share is closed."""
    add_l0_gates(model, sample, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in l0_layers(model).values():
            closed = torch.rand(layer.log_alpha.shape, generator=generator) < share
            open_ = torch.rand(layer.log_alpha.shape, generator=generator) * 4 - 2
            layer.log_alpha.copy_(torch.where(closed, -3.0, open_))
    return model


def cut_of(model: nn.Module, sample: Tensor) -> tuple[nn.Module, Closed]:
    return cut_closed(model, channel_groups(without_gates(model), sample), sample)


def same_outputs(model: nn.Module, plain: nn.Module, x: Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        expected, found = model.eval()(x), plain.eval()(x)
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (ConvNet, images(4, dtype=torch.float64)),
    "residual": (ResNet, images(4, dtype=torch.float64)),
    "linear": (mlp, torch.randn(4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)),
}


@settings(deadline=None, max_examples=15)
@given(net=st.sampled_from(sorted(NETS)), share=st.floats(0, 1), seed=st.integers(0, 999), norms=st.booleans())
def test_the_cut_network_computes_what_the_gated_one_does(net: str, share: float, seed: int, norms: bool) -> None:
    make, x = NETS[net]
    model = gated(randomise(seeded(make, seed), seed).double(), x[:1], share, seed, close_norms=norms)
    same_outputs(model, without_gates(model), x, 1e-10)
    plain, found = cut_of(model, x[:1])
    same_outputs(model, plain, x, 1e-10)
    assert all(type(layer) in (nn.Conv2d, nn.Linear) for layer in prunable_layers(plain).values())
    assert not any("log_alpha" in name for name in plain.state_dict())
    total = sum(int((layer.mean_gates() == 0).sum()) for layer in l0_layers(model).values())
    assert found.closed == total and found.gates == sum(len(one.log_alpha) for one in l0_layers(model).values())
    assert 0 <= found.left <= found.closed and found.cut + found.left == found.closed


@pytest.mark.parametrize(
    "name",
    [
        *("LeNet300", "LeNet5", "Conv6", "ConvOnly", "MLP5", "LogisticRegression"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("AlexNet", "ResNet18", "ResNet34", "VGG16")),
    ],
)
def test_every_network_of_ours_ends_smaller_and_the_same(name: str, tmp_path: Path) -> None:
    size = 32 if name == "VGG16" else 28
    model, x = shipped(name, image_size=size), images(3, channels=1, size=size)
    dense = sum(parameter.numel() for parameter in model.parameters())
    gated(model, x[:1], 0.5)
    plain, found = cut_of(model, x[:1])
    same_outputs(model, plain, x)
    assert found.closed > 0
    if name != "LogisticRegression":  # its only gates are those of the inputs
        assert sum(parameter.numel() for parameter in plain.parameters()) < 0.8 * dense
    assert lineage_of(plain).name == name
    loaded = load_model(save_model(plain, tmp_path / "a.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), plain.eval()(x))
    assert node_sparsity(loaded, x[:1]) == node_sparsity(plain, x[:1])
    assert weight_sparsity(loaded) == weight_sparsity(plain) > 0.3


def test_a_channel_in_front_of_zero_padding_is_cut_because_the_norm_closes_with_the_gate() -> None:
    x = images(3, dtype=torch.float64)
    for norms, expected in ((True, 4), (False, 6)):
        model = randomise(seeded(ConvNet)).double()
        add_l0_gates(model, x[:1], close_norms=norms)
        assert isinstance(model.na, L0BatchNorm2d) is norms
        with torch.no_grad():
            model.a.log_alpha.fill_(1.0)
            model.a.log_alpha[:2] = -3.0
        plain, found = cut_of(model, x[:1])
        same_outputs(model, plain, x, 1e-10)
        assert len(plain.a.weight) == expected  # the constant cannot move through the padding of b
        assert (found.closed, found.left) == (2, 0 if norms else 2)
        assert list(Masks(plain)) == ([] if norms else ["a.weight", "a.bias"])


def test_a_constant_moves_where_nothing_is_padded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))
    model = model.double()
    x = images(3, dtype=torch.float64)
    gated(model, x[:1], 0.0)
    with torch.no_grad():
        model[0].log_alpha[1:3] = -3.0  # sigmoid makes 0.5 of them
    plain, found = cut_of(model, x[:1])
    assert plain[0].out_channels == 4 and found.left == 0
    same_outputs(model, plain, x, 1e-10)


def test_a_unit_goes_when_nothing_reads_it_even_if_its_own_gates_are_open() -> None:
    model = randomise(seeded(ConvNet)).double()
    x = images(3, dtype=torch.float64)
    gated(model, x[:1], 0.0)
    with torch.no_grad():
        model.d.log_alpha[[1, 4]] = -3.0
        model.c.log_alpha[4:8] = -3.0  # channel 1 of b, all its four places
        model.c.log_alpha[8] = -3.0  # one place of channel 2
    plain, found = cut_of(model, x[:1])
    same_outputs(model, plain, x, 1e-10)
    assert plain.c.out_features == 8 and plain.b.out_channels == 7 and found.left == 1
    held = Masks(plain)["c.weight"]
    assert held.shape == (8, 28) and int((held == 0).sum()) == 8 and not held[:, 4].any()


def test_a_layer_with_no_open_gate_keeps_one_channel_as_zeros() -> None:
    model = randomise(seeded(ConvNet)).double()
    x = images(3, dtype=torch.float64)
    gated(model, x[:1], 0.0)
    with torch.no_grad():
        model.a.log_alpha.fill_(-4.0)
    plain, found = cut_of(model, x[:1])
    assert plain.a.out_channels == 1 and not plain.a.weight.any() and found.left == 1
    same_outputs(model, plain, x, 1e-10)


def test_a_residual_channel_goes_when_all_that_add_to_it_are_closed() -> None:
    model = randomise(seeded(ResNet)).double()
    x = images(3, dtype=torch.float64)
    gated(model, x[:1], 0.0)
    with torch.no_grad():
        model.stem.log_alpha[[0, 2]] = -3.0
        model.b.log_alpha[[2, 3]] = -3.0
    plain, found = cut_of(model, x[:1])
    same_outputs(model, plain, x, 1e-10)
    assert plain.stem.out_channels == plain.b.out_channels == 5
    assert (found.closed, found.cut, found.left) == (4, 2, 2)


def test_a_network_that_was_cut_before_gets_gates_and_is_cut_further() -> None:
    model, x = randomise(seeded(ConvNet)).double(), images(3, dtype=torch.float64)
    groups = channel_groups(model, x[:1])
    cut(model, {"a": torch.tensor([True, False, True, True, True, False])}, groups)
    gated(model, x[:1], 0.5, seed=3)
    plain, _ = cut_of(model, x[:1])
    same_outputs(model, plain, x, 1e-10)
    assert lineage_of(plain).dense["a.weight"] == (6, 3, 3, 3)
    assert len(lineage_of(plain).kept["a.weight", 0]) == len(plain.a.weight) < 4


def test_weights_that_something_else_uses_get_no_gates() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.functional = nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(torch.relu(self.first(x)))
            return self.third(nn.functional.linear(x, self.functional.weight))

    model, x = Tied(), torch.randn(2, 6)
    assert add_l0_gates(model, x[:1]) == ["third"]
    same_outputs(model, without_gates(model), x)


def test_other_peoples_layers_grouped_and_depthwise_convolutions_stay_exact() -> None:
    class Own(nn.Conv2d):
        pass

    def run(self: Net, x: Tensor) -> Tensor:
        x = self.nw(self.wise(torch.relu(self.na(self.a(x)))))
        return self.d(torch.relu(self.own(self.grouped(x))).mean((2, 3)))

    torch.manual_seed(0)
    model = Net(
        run, a=nn.Conv2d(3, 8, 3, padding=1), na=nn.BatchNorm2d(8), wise=nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nw=nn.BatchNorm2d(8), grouped=nn.Conv2d(8, 6, 1, groups=2), own=Own(6, 6, 1), d=nn.Linear(6, 5),
    )  # fmt: skip
    model = randomise(model).double()
    x = images(3, dtype=torch.float64)
    names = add_l0_gates(model, x[:1])
    assert names == ["a", "wise", "grouped", "d"]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in l0_layers(model).values():
                drawn = torch.rand(layer.log_alpha.shape, generator=generator)
                layer.log_alpha.copy_(torch.where(drawn < 0.4, SMALLEST, LARGEST * drawn))
        plain, _ = cut_of(model, x[:1])
        same_outputs(model, plain, x, 1e-10)


def test_weights_keep_values_names_and_shapes_and_the_network_its_name() -> None:
    model = shipped("LeNet5")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_l0_gates(model, images(1, channels=1, size=28))
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(name.endswith("log_alpha") for name in after.keys() - before.keys())
    assert lineage_of(model).name == "LeNet5"
    assert {type(layer) for layer in l0_layers(model).values()} == {L0Conv2d, L0Linear}


def test_only_channels_whose_constants_all_move_are_foldable() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 5),
    ).double()  # fmt: skip
    x = images(1, dtype=torch.float64)
    groups = channel_groups(model, x)
    off = {name: torch.arange(groups[name].channels) < 2 for name in ("0", "2", "4")}
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight[:2], layer.bias[:2] = 0, 0
    left = foldable(model, off, groups, x)
    assert {name: each.tolist() for name, each in left.items()} == {
        "0": [True, True] + [False] * 4,  # those of "2" are read through zero padding
        "4": [True, True] + [False] * 3,
    }
    with torch.no_grad():
        expected = model.eval()(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cut(model, {name: ~each for name, each in left.items()}, groups, fold=True)
        torch.testing.assert_close(model(x), expected)


def test_closed_gates_of_the_networks_inputs_are_counted_apart() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    sample = torch.randn(2, 3, 2, 2)
    add_l0_gates(model, sample)
    layers = l0_layers(model)
    with torch.no_grad():
        for name, off in (("1", [0, 5, 7]), ("3", [2]), ("5", [1, 3])):
            layers[name].log_alpha.fill_(9.0)
            layers[name].log_alpha[off] = -9.0
    plain, found = cut_of(model, sample)
    assert (found.gates, found.closed, found.cut, found.left, found.inputs) == (22, 6, 3, 3, 3)
    assert not plain[1].weight[:, [0, 5, 7]].any() and plain[1].weight.shape == (5, 12)
    convolution = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 3))
    add_l0_gates(convolution, sample)
    with torch.no_grad():
        l0_layers(convolution)["0"].log_alpha.fill_(-9.0)  # the last channel of its layer stays
    _, found = cut_of(convolution, sample)
    assert found.left > 0 == found.inputs
