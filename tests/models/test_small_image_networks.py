"""VGG13, MobileNetV1, ResNet56 and the variants of ResNet18 and ResNet34 against the published tables."""

import functools
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from secateur.framework.network.size import count_macs
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.errors import UsageError
from tests.networks import images, masked, random_keep, shipped


class Published(NamedTuple):
    """Of 32x32 colour images: parameters for 10 and for 100 classes, filters, convolutions, their MACs."""

    options: dict[str, Any]
    params: tuple[int, int]
    filters: int
    convolutions: int
    conv_macs: int


TABLE = {
    "VGG13": Published({}, (9_413_066, 9_459_236), 2944, 10, 228_261_888),
    "MobileNetV1": Published({}, (3_217_226, 3_309_476), 10944, 27, 46_344_192),
    "ResNet56": Published({}, (855_770, 861_620), 2128, 57, 125_747_200),
    "ResNet34": Published({"variant": "cifar"}, (21_282_122, 21_328_292), 8512, 36, 1_159_397_376),
    "ResNet18": Published({"variant": "cifar"}, (11_173_962, 11_220_132), 4800, 20, 555_417_600),
}
#: parameters of the parts of the network for 100 classes: (from, to) positions in `features`
PARTS = {
    "VGG13": {(0, 34): 9_407_936},
    "MobileNetV1": {(0, 2): 928, (3, 9): 2528, (9, 15): 9152, (15, 21): 18_048, (21, 27): 34_688,
                    (27, 33): 68_864, (33, 39): 134_912, (39, 45): 268_800, (45, 51): 268_800,
                    (51, 57): 268_800, (57, 63): 268_800, (63, 69): 268_800, (69, 75): 531_968,
                    (75, 81): 1_061_888},
    "ResNet56": {(0, 1): 432, (1, 2): 32, (3, 12): 42_048, (12, 21): 163_008, (21, 30): 649_600},
    "ResNet18": {(3, 5): 147_968, (5, 7): 525_568, (7, 9): 2_099_712, (9, 11): 8_393_728},
    "ResNet34": {(3, 6): 221_952, (6, 10): 1_116_416, (10, 16): 6_822_400, (16, 19): 13_114_368},
}  # fmt: skip
CLASSIFIER = {"VGG13": 51_300, "MobileNetV1": 102_500, "ResNet56": 6_500}
VGG13_CONVOLUTIONS = (1728, 36864, 73728, 147456, 294912, 589824, 1179648, 2359296, 2359296, 2359296)
every_row = pytest.mark.parametrize("name", TABLE)


@functools.cache
def meta(name: str, classes: int = 100, **options: Any) -> Any:
    with torch.device("meta"):
        chosen = options or TABLE[name].options
        return build("models", name, in_channels=3, num_classes=classes, image_size=32, **chosen)


def count(*modules: nn.Module) -> int:
    return sum(tensor.numel() for module in modules for tensor in module.parameters())


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@every_row
def test_parameters_filters_and_multiply_adds_are_the_published_ones(name: str) -> None:
    row = TABLE[name]
    assert tuple(count(meta(name, classes)) for classes in (10, 100)) == row.params
    found = convolutions(meta(name))
    assert len(found) == row.convolutions and sum(layer.out_channels for layer in found) == row.filters
    macs, _ = count_macs(meta(name), torch.empty(1, 3, 32, 32, device="meta"))
    assert macs - meta(name).classifier.weight.numel() == row.conv_macs


@every_row
def test_every_part_has_the_published_parameters(name: str) -> None:
    model = meta(name)
    for (first, last), expected in PARTS[name].items():
        assert count(model.features[first:last]) == expected
    assert count(model.classifier) == CLASSIFIER.get(name, 51_300)
    assert all(layer.bias is None for layer in convolutions(model))


def test_vgg13_has_relu_before_each_norm_and_the_published_maps() -> None:
    model = meta("VGG13")
    assert tuple(layer.weight.numel() for layer in convolutions(model)) == VGG13_CONVOLUTIONS
    sizes, kinds = [], []
    image = torch.empty(1, 3, 32, 32, device="meta")
    for layer in model.features:
        image = layer(image)
        kinds.append(type(layer).__name__[:4])
        if isinstance(layer, nn.Conv2d):
            sizes.append(image.shape[-1])
    assert sizes == [32, 32, 16, 16, 8, 8, 4, 4, 2, 2] and image.shape == (1, 512, 1, 1)
    assert "".join(kinds[:7]) == "ConvReLUBatcConvReLUBatcMaxP"


def test_the_last_pooling_of_vgg13_is_that_of_two_by_two_from_32_pixels() -> None:
    maps = images(2, size=2)
    assert torch.equal(meta("VGG13").features[-1](maps), nn.functional.max_pool2d(maps, 2))


@pytest.mark.parametrize(("name", "strides"), [("MobileNetV1", [2, 2, 2, 2]), ("ResNet56", [2, 2])])
def test_images_are_halved_where_the_published_tables_say(name: str, strides: list[int]) -> None:
    # the skip convolutions of a residual stage halve beside the block
    found = [
        layer for key, layer in meta(name).named_modules() if isinstance(layer, nn.Conv2d) and "skip" not in key
    ]
    assert [layer.stride[0] for layer in found if layer.stride[0] > 1] == strides
    if name == "MobileNetV1":
        assert [layer.out_channels for layer in found if layer.stride[0] > 1] == [64, 128, 256, 512]


@pytest.mark.parametrize(("name", "params"), [("ResNet18", 11_171_146), ("ResNet34", 21_279_306)])
def test_preact_variants_have_the_published_parameters_and_no_norm_behind_a_skip(name: str, params: int) -> None:
    model = meta(name, 10, variant="preact")
    assert count(model) == params
    units = sum(layer.out_channels for layer in convolutions(model))
    assert units == TABLE[name].filters
    assert isinstance(model.features[1].activation[0], nn.BatchNorm2d)
    assert not any(isinstance(layer, nn.BatchNorm2d) for key, layer in model.named_modules() if "skip" in key)


@pytest.mark.parametrize("name", ["ResNet18", "ResNet34"])
def test_an_unknown_variant_names_the_nearest(name: str) -> None:
    with pytest.raises(UsageError, match=f"unknown variant of {name} 'cifr': did you mean 'cifar'"):
        build("models", name, variant="cifr")


@pytest.mark.parametrize("variant", ["cifar", "preact"])
def test_variants_cut_compute_what_they_compute_masked(variant: str) -> None:
    model = shipped("ResNet18", variant=variant).eval()
    inputs = images(2, channels=1, size=16)
    groups = channel_groups(model, inputs)
    free = [group for group in groups.values() if group.protected is None]
    assert len(free) == 4 + 8 and sum(len(group.producers) for group in free) == 20
    keep = random_keep(groups)
    with torch.no_grad():
        expected = masked(model, keep, groups)(inputs)
        cut(model, keep, groups)
        found = model(inputs)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(AssertionError):  # the check can fail
        torch.testing.assert_close(found, expected + 0.01 * expected.abs().max())


@pytest.mark.parametrize("variant", ["default", "cifar", "preact"])
def test_the_default_variant_stays_and_each_runs_on_small_grey_images(variant: str) -> None:
    model = build("models", "ResNet18", variant=variant)
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert isinstance(model.classifier, nn.Sequential) == (variant == "default")
