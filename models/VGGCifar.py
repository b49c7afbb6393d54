import functools
from typing import Any

from torch import nn

from secateur import UsageError
from secateur.utils.layers import Network, conv_block, initialise_fan_out, linear
from secateur.utils.limits import check_options_of, check_switch

WIDTHS = (64, 128, 256, 512, 512)
#: depth -> convolutions of each stage
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGGCifar(Network):
    """VGG for CIFAR: 8 to 16 convolutions with batch norm and ReLU, 1 dense layer.

    Based on arXiv:1409.1556, with a single dense layer of 512 inputs.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels, at least 16.
        depth: 11, 13, 16 or 19.
        batch_norm: Whether batch norm follows each convolution.

    Raises:
        UsageError: If an option is not allowed.

    Example:
        >>> from secateur import build
        >>> model = build("models", "VGGCifar", in_channels=3, depth=19)
        >>> sum(tensor.numel() for tensor in model.parameters())
        20040522
    """

    smallest_image = 16
    usual_image = 32  # with 28 pixels the input of the last layers would be a single pixel

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, depth: int = 16,
        batch_norm: bool = True,
    ) -> None:  # fmt: skip
        self.check_options(depth=depth, batch_norm=batch_norm)
        self.depth, self.batch_norm = depth, batch_norm  # for `layers`, which the constructor of Network calls
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    @staticmethod
    def check_options(depth: Any = 16, batch_norm: Any = True, **options: Any) -> None:
        """Raise UsageError for options that are not allowed; called before data are loaded."""
        check_options_of("VGGCifar", {"batch_norm": check_switch}, batch_norm=batch_norm)
        if isinstance(depth, bool) or depth not in STAGES:
            near = f": the nearest is {min(STAGES, key=lambda known: abs(known - depth))}" if isinstance(
                depth, int) else ""  # fmt: skip
            raise UsageError(f"VGGCifar: depth must be 11, 13, 16 or 19, got {depth!r}{near}", argument="depth")

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        block = functools.partial(conv_block, act=nn.ReLU, norm=self.batch_norm)
        layers: list[nn.Module] = []
        inputs = in_channels
        for width, count in zip(WIDTHS, STAGES[self.depth], strict=True):
            for _ in range(count):
                layers += block(inputs, width, 3, 1)
                inputs = width
            layers.append(nn.MaxPool2d(2))
        # equal to the last stage's 2x2 pooling for 32 pixels; one pixel for all other sizes
        layers[-1] = nn.AdaptiveMaxPool2d(1)
        return nn.Sequential(*layers), linear(inputs, num_classes)

    def initialise_weights(self) -> None:
        initialise_fan_out(self)
        assert isinstance(self.classifier, nn.Linear)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
