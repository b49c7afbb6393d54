"""All networks against the published counts, and the properties every network has.

A new network is tested by one row in NETWORKS.
"""

import ast
import functools
import importlib
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from secateur.utils.errors import UsageError
from secateur.utils.layers import GAIN, Network, orthogonal_
from tests import ROOT

FOLDER = ROOT / "models"
SHAPES = {
    "MNIST": (1, 28, 10),
    "CIFAR10": (3, 32, 10),
    "CIFAR100": (3, 32, 100),
    "IMAGENETTE": (3, 128, 10),
    "OMNIGLOT": (1, 105, 1623),
}


class Facts(NamedTuple):
    """What is known of a network: parameters on the first four data sets, and more."""

    params: tuple[int, int, int, int]
    hidden: int
    layers: int
    smallest: int


NETWORKS = {
    "LogisticRegression": Facts((7_850, 30_730, 307_300, 491_530), 0, 1, 1),
    "LeNet300": Facts((267_410, 953_810, 962_900, 14_777_810), 400, 3, 1),
    "MLP5": Facts((1_199_114, 2_370_570, 2_416_740, 25_963_530), 2048, 5, 1),
    "LeNet5": Facts((142_798, 143_098, 150_748, 143_098), 226, 5, 28),
    "ConvOnly": Facts((171_242, 174_442, 200_452, 174_442), 288, 5, 26),
    "Conv6": Facts((1_805_514, 1_806_666, 1_829_796, 1_806_666), 1408, 9, 4),
    "AlexNet": Facts((28_272_330, 28_275_530, 28_644_260, 28_275_530), 9600, 8, 7),
    "VGG16": Facts((50_702_794, 50_703_946, 51_072_676, 50_703_946), 12928, 16, 16),
    "ResNet18": Facts((11_701_706, 11_707_978, 11_731_108, 11_707_978), 5056, 22, 1),
    "ResNet34": Facts((21_813_578, 21_819_850, 21_842_980, 21_819_850), 8768, 38, 1),
    "VGG13": Facts((9_411_914, 9_413_066, 9_459_236, 9_413_066), 2944, 11, 16),
    "MobileNetV1": Facts((3_216_650, 3_217_226, 3_309_476, 3_217_226), 10944, 28, 1),
    "ResNet56": Facts((855_482, 855_770, 861_620, 855_770), 2128, 58, 1),
    "AlexNetCifar": Facts((2_456_778, 2_472_266, 2_495_396, 2_472_266), 1152, 6, 13),
    "VGGCifar": Facts((14_727_114, 14_728_266, 14_774_436, 14_728_266), 4224, 14, 16),
    "ResNetCifar": Facts((272_186, 272_474, 278_324, 272_474), 784, 22, 1),
    "PreResNet": Facts((271_994, 272_282, 278_132, 272_282), 784, 22, 1),
    "WideResNet": Facts((691_386, 691_674, 703_284, 691_674), 1136, 17, 1),
    "ResNeXt29": Facts((34_425_546, 34_426_698, 34_518_948, 34_426_698), 28736, 32, 1),
    "DenseNetBC": Facts((768_730, 769_162, 800_032, 769_162), 3162, 100, 4),
    "HoyerMLP": Facts((266_610, 953_010, 962_100, 14_777_010), 400, 3, 1),
    "HoyerCNN": Facts((431_080, 657_080, 702_170, 21_057_080), 570, 4, 16),
}
#: those without any bias but that of the last layer
NO_BIAS = ("VGG13", "MobileNetV1", "ResNet56", "ResNetCifar", "PreResNet", "WideResNet", "ResNeXt29", "DenseNetBC")
#: files that hold more than one architecture, tested by themselves
FAMILIES = ("TorchvisionModel",)
PARAMS = [
    (name, data, count)
    for name, facts in NETWORKS.items()
    for data, count in zip(SHAPES, facts.params, strict=False)
] + [("MLP5", "OMNIGLOT", 7_269_975), ("ResNet18", "OMNIGLOT", 12_116_247)]
#: weights of Conv2d and Linear layers; the same and those of the norms
WEIGHTS = [
    ("MLP5", "MNIST", 1_192_960, 1_195_008),
    ("LeNet300", "MNIST", 266_200, 266_600),
    ("VGG16", "CIFAR10", 50_665_152, 50_678_080),
    ("ResNet18", "CIFAR10", 11_693_760, 11_698_816),
    ("Conv6", "CIFAR10", 1_802_432, 1_803_840),
    ("AlexNet", "CIFAR10", 28_246_720, 28_256_320),
]
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name: str) -> Callable[..., Network]:
    return getattr(importlib.import_module(f"models.{name}"), name)


def make(name: str, data: str = "MNIST", seed: int = 0, **options: int) -> Network:
    channels, size, classes = SHAPES[data]
    torch.manual_seed(seed)
    return network(name)(**{"in_channels": channels, "num_classes": classes, "image_size": size, **options})


@functools.cache
def meta(name: str, data: str = "MNIST") -> Network:
    with torch.device("meta"):
        return make(name, data)


@functools.cache
def real(name: str) -> Network:
    """Built once: only for tests that leave the weights alone."""
    return make(name, "CIFAR10")


def layers(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def norms(model: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


def gram(weight: Tensor) -> Tensor:
    matrix = weight.detach().flatten(1).double()
    return matrix @ matrix.t() if len(matrix) <= matrix.shape[1] else matrix.t() @ matrix


def test_every_file_is_in_the_table() -> None:
    assert sorted((*NETWORKS, *FAMILIES)) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize(("name", "data", "count"), PARAMS)
def test_parameter_counts_are_the_published_ones(name: str, data: str, count: int) -> None:
    assert sum(tensor.numel() for tensor in meta(name, data).parameters()) == count


@pytest.mark.parametrize(("name", "data", "prunable", "named_weight"), WEIGHTS)
def test_weight_counts_are_the_published_ones(name: str, data: str, prunable: int, named_weight: int) -> None:
    model = meta(name, data)
    assert sum(layer.weight.numel() for layer in layers(model)) == prunable
    named = [tensor for key, tensor in model.named_parameters() if "weight" in key]
    assert sum(tensor.numel() for tensor in named) == named_weight


@every_network
def test_layers_and_hidden_nodes_are_the_published_ones(name: str) -> None:
    found = layers(meta(name))
    assert len(found) == NETWORKS[name].layers
    assert sum(len(layer.weight) for layer in found[:-1]) == NETWORKS[name].hidden


@every_network
def test_only_the_stem_and_the_skips_of_resnets_have_no_bias(name: str) -> None:
    without = [key for key, module in meta(name).named_modules() if getattr(module, "bias", 0) is None]
    if name in NO_BIAS:
        assert without == [key for key, module in meta(name).named_modules() if isinstance(module, nn.Conv2d)]
    elif name.startswith("ResNet"):
        assert without[0] == "features.0"
        assert len(without) == 4 and all(key.endswith("skip.0") for key in without[1:])
    else:
        assert without == []


@every_network
def test_norms_and_activations_have_the_published_constants(name: str) -> None:
    for norm in norms(meta(name)):
        assert (norm.eps, norm.momentum, norm.affine, norm.track_running_stats) == (1e-5, 0.1, True, True)
    slopes = {module.negative_slope for module in meta(name).modules() if isinstance(module, nn.LeakyReLU)}
    assert slopes <= {0.05}
    shares = {module.p for module in meta(name).modules() if isinstance(module, nn.Dropout)}
    assert shares <= {0.3}


@every_network
@pytest.mark.parametrize("data", ["MNIST", "CIFAR10", "OMNIGLOT"])
@pytest.mark.parametrize(("batch", "training"), [(1, False), (2, False), (2, True)])
def test_shapes_come_out_right_for_all_data(name: str, data: str, batch: int, training: bool) -> None:
    channels, size, classes = SHAPES[data]
    model = meta(name, data).train(training)
    assert model(torch.empty(batch, channels, size, size, device="meta")).shape == (batch, classes)


@every_network
@pytest.mark.parametrize("data", ["MNIST", pytest.param("CIFAR10", marks=pytest.mark.slow)])
def test_a_real_forward_gives_one_row_of_finite_logits_per_image(name: str, data: str) -> None:
    channels, size, classes = SHAPES[data]
    if name in ("VGG16", "AlexNet", "ResNeXt29"):
        channels = 3  # slow to build, and built for three channels already
    model = real(name) if channels == 3 else make(name, data)
    images = torch.randn(2, channels, size, size)
    with torch.no_grad():
        for batch, training in ((images[:1], False), (images, False), (images, True)):
            logits = model.train(training)(batch)
            assert logits.shape == (len(batch), classes)
            assert logits.isfinite().all()


@every_network
def test_one_image_alone_gets_the_logits_it_gets_in_a_batch(name: str) -> None:
    model = real(name).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images[:1]), model(images)[:1], rtol=1e-4, atol=1e-4)


@every_network
def test_the_smallest_image_works_and_the_next_smaller_one_cannot(name: str) -> None:
    smallest = NETWORKS[name].smallest
    with torch.device("meta"):
        make(name, image_size=smallest).eval()(torch.empty(1, 1, smallest, smallest))
        with pytest.raises(UsageError) as caught:
            make(name, image_size=smallest - 1)
        message = str(caught.value)
        assert "\n" not in message
        assert all(part in message for part in (name, f"at least {smallest}", f"got {smallest - 1}"))
        if smallest > 1:
            size = smallest - 1
            with pytest.raises(RuntimeError):
                make(name, image_size=smallest).eval()(torch.empty(1, 1, size, size))


@every_network
@pytest.mark.parametrize("option", ["in_channels", "num_classes"])
def test_counts_below_one_are_refused(name: str, option: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=f"{name}: {option} must be at least 1, got 0"):
        network(name)(**{option: 0})


def test_the_hidden_width_of_mlp5_is_an_option() -> None:
    with torch.device("meta"):
        assert [len(layer.weight) for layer in layers(make("MLP5", hidden_dim=7))] == [7, 7, 7, 7, 10]
        with pytest.raises(UsageError, match="MLP5: hidden_dim must be at least 1, got 0"):
            make("MLP5", hidden_dim=0)


@every_network
def test_meta_construction_draws_no_random_numbers(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in network(name)().state_dict().values())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["LogisticRegression", "LeNet300", "LeNet5", "ConvOnly", "ResNet18", "ResNet56"])
def test_initial_values_follow_the_published_rule(name: str) -> None:
    found = layers(real(name))
    for layer in found:
        gain = 1.0 if layer is found[-1] else GAIN
        size = min(len(layer.weight), layer.weight[0].numel())
        torch.testing.assert_close(
            gram(layer.weight), gain**2 * torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-5
        )
        if layer.bias is not None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            assert layer.bias.abs().max() <= bound
            if len(layer.bias) >= 64:
                assert layer.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.3)
    # running statistics are left out: another test may have run this network in training mode
    for norm in norms(real(name)):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (6, 6), (3, 8), (8, 3), (4, 2, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_any_shape_become_orthogonal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = orthogonal_(torch.empty(shape, dtype=dtype), gain=2.0)
    size = min(shape[0], math.prod(shape[1:]))
    accuracy = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(gram(weight), 4 * torch.eye(size, dtype=torch.float64), rtol=0, atol=accuracy)


def test_orthogonal_weights_favour_no_direction() -> None:
    """Entries and trace of a uniformly random 3x3 orthogonal matrix have the moments theory gives."""
    torch.manual_seed(0)
    draws = torch.stack([orthogonal_(torch.empty(3, 3, dtype=torch.float64)) for _ in range(4000)])
    assert draws.mean(0).abs().max() < 0.04
    assert (draws.square().mean(0) - 1 / 3).abs().max() < 0.02
    traces = draws.diagonal(dim1=1, dim2=2).sum(1)
    assert traces.square().mean().item() == pytest.approx(1, abs=0.08)
    assert torch.linalg.det(draws).mean().abs() < 0.06


def test_an_exact_zero_among_the_random_numbers_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda shape, **options: torch.zeros(shape, **options))
    assert orthogonal_(torch.empty(1, 1)).abs().item() == 1


@pytest.mark.parametrize("name", ["LeNet300", "LeNet5", "Conv6", "ResNet18"])
def test_the_seed_decides_the_weights(name: str) -> None:
    one, two, other = (make(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    weights = [key for key in one if one[key].ndim > 1]
    assert not any(torch.equal(one[key], other[key]) for key in weights)


@pytest.mark.parametrize("name", ["MLP5", "LeNet5", "ConvOnly", "Conv6", "ResNet56"])
def test_double_precision_and_channels_last_change_nothing_but_rounding(name: str) -> None:
    model = make(name).eval()
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        expected = model(images)
        # torch's types forget that modules take a memory format
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = model(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
        double = model.double()(images.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["LeNet300", "LeNet5", "ConvOnly", "ResNet18", *NO_BIAS])
def test_gradients_reach_every_parameter(name: str) -> None:
    model = make(name, "CIFAR10").train()
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in model.parameters())


def test_hooks_may_watch_every_module() -> None:
    """In-place activations would make backward hooks on the norms before them raise."""
    model = make("LeNet5")
    seen: set[str] = set()
    for key, module in model.named_modules():
        module.register_full_backward_hook(lambda *_, key=key: seen.add(key))
    model(torch.randn(2, 1, 28, 28, requires_grad=True)).sum().backward()
    assert seen == {key for key, _ in model.named_modules()}


def test_the_forward_does_not_depend_on_the_number_of_channels() -> None:
    """The layers around the flattening are swapped for narrower ones; the network must not notice."""
    model = make("LeNet5")
    assert isinstance(model.features, nn.Sequential) and isinstance(model.classifier, nn.Sequential)
    model.features[8], model.features[9] = nn.Conv2d(16, 7, 5), nn.BatchNorm2d(7)
    model.classifier[1] = nn.Linear(7 * 3 * 3, 84)
    assert model.eval()(torch.randn(1, 1, 28, 28)).shape == (1, 10)


def test_module_names_that_users_build_on_stay() -> None:
    assert isinstance(meta("VGG16").get_submodule("features.0"), nn.Conv2d)
    for name in NETWORKS:
        assert {key for key, _ in meta(name).named_children()} == {"features", "classifier"}


@every_network
def test_each_class_says_what_it_is_in_one_line(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    assert 20 <= len(summary) <= 100 and summary.endswith(".")
