import functools
from typing import ClassVar

from torch import nn

from secateur import UsageError
from secateur.utils.layers import Network, activation, conv_block, dense_classifier
from secateur.utils.residual import BasicBlock, PreActBlock, small_image_layers, stages
from secateur.utils.suggest import unknown

VARIANTS = ("default", "cifar", "preact")


class ResNet18(Network):
    """ResNet-18 with batch norm: 20 convolutions in 8 residual blocks, 2 dense layers.

    Based on arXiv:1512.03385, with biases in the blocks and a hidden dense layer. The variants for small images
    have neither: "cifar" is that of arXiv:2009.11839, "preact" that of arXiv:1603.05027.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.
        variant: "default"; "cifar", with a 3x3 stem of stride 1, no biases, ReLU and one dense layer; or "preact",
            the same with norm and ReLU before each convolution.
    """

    #: residual blocks in each stage
    depths: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, variant: str = "default"
    ) -> None:
        if variant not in VARIANTS:
            raise UsageError(unknown(f"variant of {type(self).__name__}", str(variant), VARIANTS))
        self.variant = variant  # for `layers`, which the constructor of Network calls
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        if self.variant != "default":
            preact = self.variant == "preact"
            small_block = PreActBlock if preact else BasicBlock
            return small_image_layers(in_channels, num_classes, self.depths, 64, small_block, stem_norm=not preact)
        stem = conv_block(in_channels, 64, 7, 3, stride=2, bias=False)
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        block = functools.partial(BasicBlock, bias=True, activation=activation)
        blocks, width = stages(self.depths, 64, block)
        features = nn.Sequential(*stem, pool, *blocks, nn.AdaptiveAvgPool2d(2))
        return features, dense_classifier(width * 2 * 2, (256,), num_classes)
