from typing import Any

from torch import nn

from secateur.utils.layers import Network, initialise_fan_out
from secateur.utils.limits import check_options_of, whole
from secateur.utils.residual import Bottleneck, small_image_layers

LIMITS = {"cardinality": whole(1), "widen_factor": whole(1)}
WIDTH = 64


class ResNeXt29(Network):
    """ResNeXt-29 for CIFAR: a stem, 3 stages of 3 bottlenecks with grouped convolutions, 1 dense layer.

    Based on arXiv:1611.05431. ResNeXt-29 16x64d is `cardinality=16`.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.
        cardinality: Groups of each 3x3 convolution, of 64, 128 and 256 channels in the three stages.
        widen_factor: The outputs of the stages have 64, 128 and 256 times as many channels; the paper has 4.

    Raises:
        UsageError: If an option is not allowed.

    Example:
        >>> from secateur import build
        >>> model = build("models", "ResNeXt29", in_channels=3, cardinality=8)
        >>> sum(tensor.numel() for tensor in model.parameters())
        34426698
    """

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, cardinality: int = 8,
        widen_factor: int = 4,
    ) -> None:  # fmt: skip
        self.check_options(cardinality, widen_factor)
        # for `layers`, which the constructor of Network calls
        self.cardinality, self.widen_factor = cardinality, widen_factor
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    @staticmethod
    def check_options(cardinality: Any = 8, widen_factor: Any = 4, **options: Any) -> None:
        """Raise UsageError for options that are not allowed; called before data are loaded."""
        check_options_of("ResNeXt29", LIMITS, cardinality=cardinality, widen_factor=widen_factor)

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        def block(inputs: int, outputs: int, stride: int) -> nn.Module:
            width = self.cardinality * (outputs // self.widen_factor)
            return Bottleneck(inputs, outputs, stride, width=width, groups=self.cardinality)

        return small_image_layers(
            in_channels, num_classes, (3, 3, 3), WIDTH * self.widen_factor, block, stem=WIDTH
        )

    def initialise_weights(self) -> None:
        initialise_fan_out(self)
