"""Classification networks of torchvision, adapted to the data set."""

import bisect
from typing import Any

import torch
from torch import nn

from secateur import UsageError, torchvision
from secateur.framework.network.copies import twin_of
from secateur.utils.layers import require
from secateur.utils.subsampled import subsample
from secateur.utils.suggest import one_line, unknown

RGB_CHANNELS = 3
#: options of googlenet and inception_v3 that disable the auxiliary heads and a warning
WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": True}
LARGEST_TRIED = 512


class TorchvisionModel(nn.Module):
    """Any classification network of torchvision, by `--arch NAME`; resnet18 by default.

    The constructor returns the network of torchvision, not a wrapper: the names of modules and tensors, and so the
    files of weights, are those of torchvision. The auxiliary heads of googlenet and inception_v3 are disabled;
    both convert images normalised with the constants of ImageNet to the inputs of their published weights. Strided
    1x1 convolutions are `SubsampledConv2d`.

    Args:
        arch: A name of torchvision.models, such as "resnet50", "mobilenet_v3_small" or "vit_b_16".
        in_channels: Inputs of the first layer.
        num_classes: Outputs of the last layer.
        image_size: Side of the images in pixels, for networks that are built for one size.

    Raises:
        UsageError: If `arch` is unknown, or does not support images of this size.
    """

    def __new__(  # type: ignore[misc]  # returns the network of torchvision
        cls, *, arch: str = "resnet18", in_channels: int = 3, num_classes: int = 1000, image_size: int = 224
    ) -> nn.Module:
        cls.check_options(arch=arch)
        require(cls, in_channels=in_channels, num_classes=num_classes, image_size=image_size)
        step, options = _sized(arch, image_size)
        if image_size % step:
            raise UsageError(f"{cls.__name__}: {arch} needs an image_size that is a multiple of {step}, "
                             f"got {image_size}")  # fmt: skip
        if arch in ("googlenet", "inception_v3"):
            options |= WITHOUT_AUXILIARY | {"transform_input": in_channels == RGB_CHANNELS}
        network = torchvision().models.get_model(arch, weights=None, num_classes=num_classes, **options)
        if in_channels != RGB_CHANNELS:
            _swap_first_layer(network, in_channels)
        subsample(network)
        trial = twin_of(network).eval().to("meta")
        why = _refusal(trial, in_channels, image_size)
        if why is not None:
            raise UsageError(f"{cls.__name__}: {arch} cannot work with image_size {image_size}: "
                             f"{_smallest(trial, in_channels, image_size) or why}")  # fmt: skip
        return network

    @staticmethod
    def check_options(arch: str = "resnet18", **options: Any) -> None:
        """Raise UsageError for an unknown `arch`; called before data are loaded."""
        models = torchvision().models
        names = models.list_models(module=models)
        if arch not in names:
            raise UsageError(unknown("arch", str(arch), names), argument="arch")


def _sized(arch: str, image_size: int) -> tuple[int, dict[str, Any]]:
    """Return the required divisor of the image size, and the option of a network that is built for one size.

    The divisor is given by patches or by windows in the smallest map.
    """
    if arch.startswith("vit_"):
        return int(arch.rpartition("_")[2]), {"image_size": image_size}
    return (224, {"input_size": (image_size, image_size)}) if arch.startswith("maxvit_") else (1, {})


def _swap_first_layer(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one with `in_channels` inputs and outputs of the same variance."""
    name, old = next((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d))
    shape: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **shape)
    if not old.weight.is_meta:
        with torch.no_grad():
            scale = (RGB_CHANNELS / in_channels) ** 0.5
            new.weight.normal_(0, float(old.weight.std()) * scale)
            if new.bias is not None and old.bias is not None:
                new.bias.copy_(old.bias)
    owner, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(owner), attribute, new)


def _refusal(trial: nn.Module, in_channels: int, image_size: int) -> str | None:
    """Return the error of a forward pass with images of this size, or None; `trial` is on the meta device."""
    try:
        with torch.no_grad():
            trial(torch.empty(1, in_channels, image_size, image_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        return one_line(error)
    return None


def _smallest(trial: nn.Module, in_channels: int, image_size: int) -> str | None:
    """Describe the smallest supported image size; None if the error does not depend on the size."""
    sizes = range(image_size, LARGEST_TRIED + 1)
    place = bisect.bisect_left(sizes, True, key=lambda size: _refusal(trial, in_channels, size) is None)
    return f"it must be at least {sizes[place]}" if place < len(sizes) else None
