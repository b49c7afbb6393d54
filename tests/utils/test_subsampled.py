"""Strided 1x1 convolutions that subsample first compute what `nn.Conv2d` computes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import build, registry
from secateur.framework.network.size import count_macs
from secateur.utils.subsampled import SubsampledConv2d, is_strided_pointwise, subsample


def results(layer: nn.Module, images: Tensor) -> list[Tensor]:
    """Outputs, then the gradients of the images and of every parameter."""
    images = images.clone().requires_grad_()
    outputs = layer(images)
    return [outputs, *torch.autograd.grad(outputs.square().sum(), [images, *layer.parameters()])]


@pytest.mark.parametrize("shape", [(2, 6, 7, 8), (6, 8, 7)], ids=["batch", "image"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 1, "stride": 3, "bias": False},
        {"kernel_size": 1, "stride": (1, 2), "groups": 3},
        {"kernel_size": 1, "stride": (2, 1), "groups": 6},
        {"kernel_size": 1, "stride": 2, "padding": 1, "dilation": 2},
        {"kernel_size": 1, "stride": 2, "padding": (2, 1), "padding_mode": "circular"},
        {"kernel_size": 1, "stride": 2, "padding": "valid"},
        {"kernel_size": 1},
        {"kernel_size": (1, 3), "stride": 2, "padding": 1},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_a_plain_convolution(
    options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = SubsampledConv2d(6, 12, **options).double()
    plain = nn.Conv2d(6, 12, **options).double()
    plain.load_state_dict(layer.state_dict())
    assert plain.stride == layer.stride
    images = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(results(layer, images), results(plain, images))
    assert count_macs(layer, images[None] if images.dim() == 3 else images) == count_macs(
        plain, images[None] if images.dim() == 3 else images
    )


def test_no_network_has_a_strided_pointwise_convolution_of_another_kind() -> None:
    for name in registry.names("models"):
        size = {"image_size": 64} if name == "TorchvisionModel" else {"image_size": 32}
        with torch.device("meta"):
            model = build("models", name, **size)
        layers = [one for one in model.modules() if isinstance(one, nn.Conv2d) and is_strided_pointwise(one)]
        assert all(type(one) is SubsampledConv2d for one in layers), name
        assert bool(layers) == ("ResNe" in name or name == "TorchvisionModel"), name


@pytest.mark.parametrize("variant", ["default", "cifar", "preact"])
def test_a_network_computes_the_same_and_keeps_its_names(variant: str) -> None:
    model = build("models", "ResNet18", variant=variant, image_size=16).double().eval()
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, SubsampledConv2d):
            layer.__class__ = nn.Conv2d
    images = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(results(model, images), results(plain, images))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert count_macs(model, images) == count_macs(plain, images)
    converted = subsample(plain)
    assert converted == [name for name, one in model.named_modules() if type(one) is SubsampledConv2d]
    assert len(converted) == 3
