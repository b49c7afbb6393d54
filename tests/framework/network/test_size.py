"""One definition of each number, counted by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateur.framework.network.latency import measure_latency
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import count_macs, csr_bytes, weight_sparsity
from secateur.framework.pruning.channels.discovery import channel_groups, node_sparsity
from secateur.framework.pruning.surgery.cutting import cut
from secateur.framework.reporting.measure import measure
from secateur.framework.storage.checkpoint import save_model
from tests.networks import (
    ConvNet,
    Net,
    ResNet,
    images,
    mask_channels,
    mlp,
    random_keep,
    randomise,
    same,
    seeded,
    shipped,
    snapshot,
)

KEYS = ["params", "macs", "effective_macs", "bytes", "csr_bytes", "weight_sparsity", "node_sparsity", "latency_ms"]
CONVNET = {"a": 3 * 9 * 6 * 64, "b": 6 * 9 * 8 * 16, "c": 32 * 10, "d": 10 * 5}


def flops(model: nn.Module, inputs: Tensor) -> FlopCounterMode:
    """torch's own counts for one sample: two operations a multiply-add."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(inputs[:1])
    return counter


def test_a_dense_network_by_hand() -> None:
    model = seeded(mlp)
    numbers = measure(model, torch.randn(5, 12), latency=False)
    assert list(numbers) == KEYS
    assert numbers["params"] == 12 * 8 + 8 + 8 * 6 + 6 + 6 * 4 + 4
    assert numbers["macs"] == numbers["effective_macs"] == 12 * 8 + 8 * 6 + 6 * 4
    assert (numbers["weight_sparsity"], numbers["node_sparsity"]) == (0.0, 0.0)
    assert numbers["csr_bytes"] is None
    assert numbers["latency_ms"] is None


def test_macs_of_each_layer_by_hand() -> None:
    total, layers = count_macs(seeded(ConvNet), images())
    assert layers == CONVNET
    assert total == sum(CONVNET.values())


def test_lenet300_is_the_published_count() -> None:
    total, _ = count_macs(shipped("LeNet300"), images(1, channels=1, size=28))
    assert total == 784 * 300 + 300 * 100 + 100 * 10 == 266_200


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (ConvNet, images()),
    "residual": (ResNet, images()),
    "linear": (mlp, torch.randn(2, 12)),
    "sequence": (lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 9, 7)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6)), images()),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2)), images()),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 2, 2), nn.Conv2d(6, 2, 1)), images()),
    "one-dimensional": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.Conv1d(6, 2, 1)), torch.randn(2, 4, 9)),
    "ResNet18": (lambda: shipped("ResNet18"), images(1, channels=1, size=28)),
}


@pytest.mark.parametrize("name", NETS)
def test_macs_are_half_the_flops_that_torch_counts(name: str) -> None:
    make, inputs = NETS[name]
    model = seeded(make)
    total, layers = count_macs(model, inputs)
    counter = flops(model, inputs)
    assert total == counter.get_total_flops() // 2 == sum(layers.values()) > 0
    of_modules = counter.get_flop_counts()
    for layer, macs in layers.items():
        assert macs == sum(of_modules[f"{type(model).__name__}.{layer}"].values()) // 2


@pytest.mark.parametrize("train", [True, False])
def test_attention_is_counted_with_its_products(train: bool) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train(train)
    total, _ = count_macs(model, torch.randn(2, 5, 8))
    projections, products, linear = 5 * (8 * 24 + 8 * 8), 2 * 5 * 5 * 8, 5 * 2 * 8 * 16
    assert total == projections + products + linear
    assert torch.backends.mha.get_fastpath_enabled()


def test_macs_of_one_sample_whatever_the_batch() -> None:
    assert count_macs(seeded(ConvNet), images(1)) == count_macs(seeded(ConvNet), images(4))


def test_a_layer_that_runs_twice_counts_twice() -> None:
    model = Net(lambda s, x: s.c(s.b(s.b(x))), b=nn.Conv2d(3, 3, 1), c=nn.Conv2d(3, 2, 1))
    assert count_macs(model, images())[1] == {"b": 2 * 9 * 64, "c": 6 * 64}


def test_a_cut_network_by_hand() -> None:
    model = seeded(ConvNet)
    groups = channel_groups(model, images())
    keep = {"a": torch.arange(6) < 3, "b": torch.arange(8) < 6, "c": torch.arange(10) < 4}
    cut(model, keep, groups)
    numbers = measure(model, images(), latency=False)
    weights = 3 * 9 * 3 + 3 * 9 * 6 + 6 * 4 * 4 + 4 * 5
    assert numbers["params"] == weights + (3 + 4 + 5) + 2 * (3 + 6 + 4)
    assert numbers["macs"] == numbers["effective_macs"] == 3 * 9 * 3 * 64 + 3 * 9 * 6 * 16 + 24 * 4 + 20
    assert numbers["weight_sparsity"] == 1 - weights / (3 * 9 * 6 + 6 * 9 * 8 + 32 * 10 + 50)
    assert numbers["node_sparsity"] == pytest.approx(1 - 13 / 24, abs=1e-15)
    assert numbers["csr_bytes"] is None


def test_a_masked_network_by_hand() -> None:
    model = seeded(ConvNet)
    Masks(model).hold({"c.weight": (torch.arange(320) >= 80).view(10, 32), "a.weight": torch.ones(6, 3, 3, 3)})
    dense = seeded(ConvNet)
    numbers = measure(model, images(), latency=False)
    assert numbers["params"] == sum(parameter.numel() for parameter in dense.parameters())
    assert numbers["macs"] == sum(CONVNET.values())
    assert numbers["effective_macs"] == sum(CONVNET.values()) - 80
    assert numbers["weight_sparsity"] == pytest.approx(80 / (162 + 432 + 320 + 50), abs=1e-15)
    assert numbers["node_sparsity"] == pytest.approx(2 / 24, abs=1e-15)  # 80 entries are two rows and a half
    rest = sum(t.numel() * t.element_size() for n, t in dense.state_dict().items() if n not in WEIGHTS)
    filled = 162 + 432 + 240 + 50
    assert numbers["csr_bytes"] == rest + 8 * filled + 4 * (7 + 9 + 11 + 6)
    assert csr_bytes(model) == numbers["csr_bytes"]


WEIGHTS = ("a.weight", "b.weight", "c.weight", "d.weight")


@pytest.mark.parametrize("make", [ConvNet, ResNet])
def test_cut_and_masked_channels_have_the_same_node_sparsity(make: Callable[[], nn.Module]) -> None:
    small, masked = seeded(make), seeded(make)
    groups = channel_groups(small, images())
    keep = random_keep(groups)
    cut(small, keep, groups)
    mask_channels(masked, keep, groups)
    assert node_sparsity(small, images()) == node_sparsity(masked, images()) > 0
    assert weight_sparsity(small) == weight_sparsity(masked) > 0
    assert count_macs(small, images())[0] < count_macs(masked, images())[0]


def test_masking_a_cut_network_adds_up() -> None:
    model = seeded(ConvNet)
    groups = channel_groups(model, images())
    cut(model, {"c": torch.arange(10) < 5}, groups)
    Masks(model).hold({"d.weight": torch.tensor([[True, False, True, True, True]] * 5)})
    numbers = measure(model, images(), latency=False)
    left = 162 + 432 + 5 * 32 + 20
    assert numbers["weight_sparsity"] == pytest.approx(1 - left / 964, abs=1e-15)
    assert numbers["node_sparsity"] == pytest.approx(5 / 24, abs=1e-15)
    assert numbers["macs"] - numbers["effective_macs"] == 5


def test_nodes_of_residual_stages_and_depthwise_layers_count_each() -> None:
    model = seeded(ResNet)
    groups = channel_groups(model, images())
    cut(model, {"stem": torch.arange(6) < 4}, groups)  # two units of the stem and two of b
    assert node_sparsity(model, images()) == pytest.approx(4 / (6 + 5 + 6 + 7 + 9 + 9), abs=1e-15)
    model = Net(
        lambda s, x: s.b(s.dw(s.a(x))), a=nn.Conv2d(3, 6, 1), dw=nn.Conv2d(6, 6, 1, groups=6), b=nn.Conv2d(6, 2, 1)
    )
    cut(model, {"a": torch.arange(6) < 3}, channel_groups(model, images()))
    assert node_sparsity(model, images()) == 0.5


def test_the_output_layers_are_left_out() -> None:
    model = Net(
        lambda s, x: (s.b(s.a(x)), s.c(s.a(x))), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 4, 1), c=nn.Conv2d(6, 9, 1)
    )
    Masks(model).hold({"b.weight": torch.zeros(4, 6, 1, 1), "a.weight": (torch.arange(18) >= 9).view(6, 3, 1, 1)})
    assert node_sparsity(model, images()) == 0.5


def test_a_network_without_hidden_units_has_no_node_sparsity() -> None:
    assert node_sparsity(nn.Linear(3, 4), torch.randn(1, 3)) == 0.0


def test_a_transposed_convolution_has_its_units_in_the_second_dimension() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 6, 2), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[0].weight[:, 1:4] = 0
    assert node_sparsity(model, images()) == 0.5


@pytest.mark.parametrize("steps", ["dense", "cut", "masked"])
def test_bytes_are_those_of_the_file(steps: str, tmp_path: Path) -> None:
    model = randomise(seeded(ConvNet))
    if steps != "dense":
        groups = channel_groups(model, images())
        cut(model, random_keep(groups), groups)
    if steps == "masked":
        Masks(model).hold({"c.weight": torch.rand(model.c.weight.shape) < 0.5})
    path = save_model(model, tmp_path / "m.safetensors")
    assert measure(model, images(), latency=False)["bytes"] == path.stat().st_size


def test_measuring_leaves_the_model_alone() -> None:
    model = randomise(seeded(ConvNet))
    model.nb.eval()
    model.a.weight.grad = torch.ones_like(model.a.weight)
    model.a.bias.requires_grad_(False)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = measure(model, images(), latency=True)
    assert same(snapshot(model), before)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert bool((model.a.weight.grad == 1).all()) and model.b.weight.grad is None
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["a.bias"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    second = measure(model, images(), latency=False)
    assert first | {"latency_ms": None} == second
    model.train()(images()).sum().backward()  # inference mode left nothing behind


def test_latency_of_batches_of_1_and_64() -> None:
    numbers = measure(seeded(ConvNet), images())["latency_ms"]
    assert list(numbers) == ["1", "64"]
    assert 0 < numbers["1"] < numbers["64"]


def test_latencies_of_several_models_are_taken_in_turns() -> None:
    calls: list[tuple[str, int, bool]] = []

    class Spy(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, inputs: Tensor) -> Tensor:
            calls.append((self.name, len(inputs), torch.is_inference_mode_enabled() and not self.training))
            return inputs

    pair = measure_latency([Spy("dense"), Spy("small")], images(), batches=(1, 8), repeats=30, warmup=2)
    assert [list(one) for one in pair] == [["1", "8"], ["1", "8"]]
    assert calls == [(name, size, True) for size in (1, 8) for _ in range(32) for name in ("dense", "small")]


def test_modes_come_back_when_the_network_fails() -> None:
    model = seeded(ConvNet)
    model.na.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        count_macs(model, images(size=20))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
