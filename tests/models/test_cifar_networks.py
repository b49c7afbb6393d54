"""The networks for CIFAR and those of DeepHoyer: published counts, options, initial weights, cutting, saving."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.storage.checkpoint import load_model, save_model
from secateur.utils.errors import UsageError
from secateur.utils.residual import PreActBlock
from tests.networks import assert_cut_is_mask, images, random_keep, shipped

#: network, options, parameters for 10 and (where published) 100 classes of 32x32 colour images
COUNTS: list[tuple[str, dict[str, Any], int, int | None]] = [
    ("AlexNetCifar", {}, 2_472_266, 2_495_396),
    ("VGGCifar", {"depth": 11, "batch_norm": False}, 9_225_610, None),
    ("VGGCifar", {"depth": 11}, 9_231_114, None),
    ("VGGCifar", {"depth": 13, "batch_norm": False}, 9_410_122, None),
    ("VGGCifar", {"depth": 13}, 9_416_010, None),
    ("VGGCifar", {"depth": 16, "batch_norm": False}, 14_719_818, None),
    ("VGGCifar", {"depth": 16}, 14_728_266, 14_774_436),
    ("VGGCifar", {"depth": 19, "batch_norm": False}, 20_029_514, None),
    ("VGGCifar", {"depth": 19}, 20_040_522, 20_086_692),
    ("ResNetCifar", {"depth": 20}, 272_474, None),
    ("ResNetCifar", {"depth": 32}, 466_906, None),
    ("ResNetCifar", {"depth": 44}, 661_338, None),
    ("ResNetCifar", {"depth": 56}, 855_770, None),
    ("ResNetCifar", {"depth": 110}, 1_730_714, 1_736_564),
    ("ResNetCifar", {"depth": 1202}, 19_424_026, None),
    ("ResNetCifar", {"depth": 164, "block": "Bottleneck"}, 1_704_154, None),
    ("ResNetCifar", {"depth": 110, "legacy_depth_rule": True}, 1_704_154, None),
    ("ResNetCifar", {"depth": 38, "legacy_depth_rule": True}, 564_122, None),
    ("ResNetCifar", {"depth": 110, "block": "Bottleneck"}, 1_147_738, None),
    ("PreResNet", {"depth": 110}, 1_730_522, 1_736_372),
    ("PreResNet", {"depth": 164, "block": "Bottleneck"}, 1_703_258, None),
    ("PreResNet", {"depth": 110, "legacy_depth_rule": True}, 1_703_258, None),
    ("PreResNet", {"depth": 110, "block": "Bottleneck"}, 1_146_842, None),
    ("WideResNet", {"depth": 28, "widen_factor": 10, "dropout": 0.3}, 36_479_194, 36_536_884),
    ("ResNeXt29", {"cardinality": 8}, 34_426_698, 34_518_948),
    ("ResNeXt29", {"cardinality": 16}, 68_155_210, 68_247_460),
    ("DenseNetBC", {"depth": 100, "growth_rate": 12}, 769_162, 800_032),
    ("DenseNetBC", {"depth": 190, "growth_rate": 40}, 25_624_430, 25_821_620),
]  # fmt: skip
#: small members of each family
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("AlexNetCifar", {}),
    ("VGGCifar", {"depth": 11}),
    ("VGGCifar", {"depth": 11, "batch_norm": False}),
    ("ResNetCifar", {"depth": 8}),
    ("ResNetCifar", {"depth": 11, "block": "Bottleneck"}),
    ("PreResNet", {"depth": 14}),
    ("PreResNet", {"depth": 11, "block": "Bottleneck"}),
    ("WideResNet", {"depth": 10, "widen_factor": 2, "dropout": 0.3}),
    ("WideResNet", {"depth": 10, "widen_factor": 1}),
    ("ResNeXt29", {"cardinality": 2, "widen_factor": 1}),
    ("DenseNetBC", {"depth": 16, "growth_rate": 4, "dropout": 0.2}),
    ("HoyerMLP", {}),
    ("HoyerCNN", {}),
]
every_small = pytest.mark.parametrize(("name", "options"), SMALL)


def meta(name: str, classes: int = 10, channels: int = 3, size: int = 32, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build("models", name, in_channels=channels, num_classes=classes, image_size=size, **options)


def count(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in model.parameters())


def blocks(model: nn.Module) -> list[PreActBlock]:
    return [module for module in model.modules() if isinstance(module, PreActBlock)]


@pytest.mark.parametrize(("name", "options", "ten", "hundred"), COUNTS)
def test_parameters_are_the_published_ones(
    name: str, options: dict[str, Any], ten: int, hundred: int | None
) -> None:
    assert count(meta(name, **options)) == ten
    if hundred is not None:
        assert count(meta(name, 100, **options)) == hundred


def test_the_networks_of_deephoyer_have_the_published_parameters() -> None:
    assert count(meta("HoyerMLP", channels=1, size=28)) == 266_610
    assert count(meta("HoyerCNN", channels=1, size=28)) == 431_080


def test_resnet56_is_resnet_cifar_of_that_depth() -> None:
    one, other = meta("ResNet56"), meta("ResNetCifar", depth=56)
    assert {key: value.shape for key, value in one.state_dict().items()} == {
        key: value.shape for key, value in other.state_dict().items()
    }


@every_small
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 32), (3, 28), (1, 64)])
def test_grey_and_colour_images_of_several_sizes_work(
    name: str, options: dict[str, Any], channels: int, size: int
) -> None:
    model = meta(name, 7, channels, size, **options)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


@every_small
def test_cut_networks_compute_what_masked_ones_compute_and_survive_saving(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = shipped(name, in_channels=3, image_size=32, **options).double().eval()
    inputs = images(2, size=32, dtype=torch.float64)
    groups = channel_groups(model, inputs)
    before, keep = count(model), random_keep(groups)
    with torch.no_grad():
        assert_cut_is_mask(model, keep, groups, inputs, rtol=1e-9, atol=1e-9)
        assert count(model) < 0.7 * before
        assert lineage_of(model)
        save_model(model, tmp_path / "cut.safetensors")
        loaded = load_model(tmp_path / "cut.safetensors").eval()
        assert torch.equal(loaded(inputs), model(inputs))


@every_small
def test_all_channels_but_the_outputs_can_be_pruned(name: str, options: dict[str, Any]) -> None:
    model = shipped(name, in_channels=3, image_size=32, **options).eval()
    groups = channel_groups(model, images(2, size=32))
    bound = [group.protected for group in groups.values() if group.protected is not None]
    assert free_groups(groups) and set(bound) <= {"model output"}


def test_where_the_shape_changes_the_skip_gets_the_input_in_preresnet_and_its_norm_in_wide_resnet() -> None:
    for name, options, raw in (("PreResNet", {"depth": 8}, True), ("WideResNet", {"depth": 10}, False)):
        block = blocks(shipped(name, in_channels=3, image_size=32, **options).eval())[1]  # type: ignore[arg-type]
        assert block.skip is not None
        seen: list[Tensor] = []
        block.skip.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        inputs = torch.randn(2, block.skip.in_channels, 4, 4)  # type: ignore[arg-type]
        with torch.no_grad():
            found, active = block(inputs), block.activation(inputs)
            source = inputs if raw else active
            assert torch.equal(seen[0], source)
            torch.testing.assert_close(found, block.residual(active) + block.skip(source))


def test_dropout_lies_before_the_last_convolution_of_wide_resnet_and_after_it_in_densenet() -> None:
    wide = blocks(meta("WideResNet", depth=10, dropout=0.3))[0].residual
    assert [type(layer).__name__ for layer in wide][-2:] == ["Dropout", "Conv2d"]
    dense = meta("DenseNetBC", depth=10, dropout=0.2).get_submodule("features.1.residual")
    assert [type(layer).__name__ for layer in dense.children()][-2:] == ["Conv2d", "Dropout"]
    assert not any(isinstance(layer, nn.Dropout) for layer in meta("WideResNet", depth=10).modules())


def test_initial_weights_are_those_of_the_published_recipes() -> None:
    torch.manual_seed(0)
    vgg = build("models", "VGGCifar", in_channels=3, image_size=32, depth=11)
    resnext = build("models", "ResNeXt29", in_channels=3, image_size=32, cardinality=2, widen_factor=1)
    for model in (vgg, resnext):
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 5000:
                std = math.sqrt(2 / (layer.out_channels * layer.weight[0, 0].numel()))
                assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
                assert layer.bias is None or not layer.bias.any()
    assert vgg.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not vgg.classifier.bias.any()
    linear = resnext.classifier.weight
    assert linear.abs().max() <= 1 / math.sqrt(linear.shape[1])
    mlp = build("models", "HoyerMLP").features[1].weight
    assert mlp.std().item() == pytest.approx(1 / math.sqrt(3 * 784), rel=0.05)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ResNetCifar", {"depth": 57},
         "ResNetCifar: depth must be 6n + 2 with n >= 1, got 57: the nearest are 56 and 62"),
        ("ResNetCifar", {"depth": 111, "block": "Bottleneck"},
         "ResNetCifar: depth must be 9n + 2 with n >= 1, got 111: the nearest are 110 and 119"),
        ("PreResNet", {"depth": 2}, "PreResNet: depth must be 6n + 2 with n >= 1, got 2: the smallest is 8"),
        ("PreResNet", {"depth": "deep"}, "PreResNet: depth must be a whole number, got 'deep'"),
        ("PreResNet", {"block": "Bottlenek"},
         "unknown block of PreResNet 'Bottlenek': did you mean 'Bottleneck'? (one of BasicBlock, Bottleneck)"),
        ("ResNetCifar", {"depth": 110, "block": "BasicBlock", "legacy_depth_rule": True},
         "ResNetCifar: legacy_depth_rule chooses the block, leave block out"),
        ("ResNetCifar", {"legacy_depth_rule": "yes"},
         "ResNetCifar: legacy_depth_rule must be true or false, got 'yes'"),
        ("WideResNet", {"depth": 30},
         "WideResNet: depth must be 6n + 4 with n >= 1, got 30: the nearest are 28 and 34"),
        ("WideResNet", {"widen_factor": 0}, "WideResNet: widen_factor must be a whole number >= 1, got 0"),
        ("WideResNet", {"dropout": 1}, "WideResNet: dropout must be a number >= 0 and < 1, got 1"),
        ("DenseNetBC", {"depth": 97},
         "DenseNetBC: depth must be 6n + 4 with n >= 1, got 97: the nearest are 94 and 100"),
        ("DenseNetBC", {"compression": 0.5}, "DenseNetBC: compression must be a number >= 1 and <= 4, got 0.5"),
        ("ResNeXt29", {"cardinality": 0}, "ResNeXt29: cardinality must be a whole number >= 1, got 0"),
        ("VGGCifar", {"depth": 18}, "VGGCifar: depth must be 11, 13, 16 or 19, got 18: the nearest is 19"),
        ("VGGCifar", {"batch_norm": 1}, "VGGCifar: batch_norm must be true or false, got 1"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_allowed_is_one_line_with_the_nearest(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        meta(name, **options)
    assert str(caught.value) == message
