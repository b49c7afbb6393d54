from typing import Any

from torch import nn

from secateur.utils.densenet import DenseLayer, transition
from secateur.utils.layers import Network, conv, initialise_fan_out, linear
from secateur.utils.limits import blocks_in, check_options_of, number, whole

LIMITS = {"growth_rate": whole(1), "compression": number(least=1, most=4), "dropout": number(least=0, below=1)}
STAGES = 3


class DenseNetBC(Network):
    """DenseNet-BC for CIFAR: a stem, 3 stages of densely connected bottlenecks, 1 dense layer.

    Based on arXiv:1608.06993. DenseNet-BC-190-40 is `depth=190, growth_rate=40`.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels, at least 4.
        depth: Layers with weights: 6n + 4 with n bottlenecks in each stage.
        growth_rate: Channels that each bottleneck adds.
        compression: The channels are divided by this between stages and rounded down, 1 to 4.
        dropout: Share of the output of each bottleneck that is set to 0 in training.

    Raises:
        UsageError: If an option is not allowed.

    Example:
        >>> from secateur import build
        >>> model = build("models", "DenseNetBC", in_channels=3, depth=100, growth_rate=12)
        >>> sum(tensor.numel() for tensor in model.parameters())
        769162
    """

    smallest_image = 4

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, depth: int = 100,
        growth_rate: int = 12, compression: float = 2, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.check_options(depth, growth_rate, compression, dropout)
        # for `layers`, which the constructor of Network calls
        self.depth, self.growth_rate, self.compression, self.dropout = depth, growth_rate, compression, dropout
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    @staticmethod
    def check_options(
        depth: Any = 100, growth_rate: Any = 12, compression: Any = 2, dropout: Any = 0.0, **options: Any
    ) -> None:
        """Raise UsageError for options that are not allowed; called before data are loaded."""
        blocks_in("DenseNetBC", depth, 6, 4)
        check_options_of("DenseNetBC", LIMITS, growth_rate=growth_rate, compression=compression, dropout=dropout)

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        width = 2 * self.growth_rate
        layers: list[nn.Module] = [conv(in_channels, width, 3, 1, bias=False)]
        for stage in range(STAGES):
            if stage:
                inputs, width = width, int(width / self.compression)
                layers += transition(inputs, width)
            for _ in range(blocks_in("DenseNetBC", self.depth, 6, 4)):
                layers.append(DenseLayer(width, self.growth_rate, self.dropout))
                width += self.growth_rate
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*layers), linear(width, num_classes)

    def initialise_weights(self) -> None:
        initialise_fan_out(self)
