"""AlexNet for small images, with batch norm: 5 convolutions, 3 dense layers."""

from __future__ import annotations

from torch import nn

from secateur.utils.layers import Network, conv_block, dense_block, dropout, initialise, linear


class AlexNet(Network):
    """AlexNet for small images, with batch norm: 5 convolutions, 3 dense layers."""

    smallest_image = 7

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            *conv_block(in_channels, 64, 5, 2),
            nn.MaxPool2d(3, stride=2),
            *conv_block(64, 192, 5, 2),
            nn.MaxPool2d(3, stride=2),
            *conv_block(192, 384, 3, 1),
            *conv_block(384, 256, 3, 1),
            *conv_block(256, 512, 3, 1),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            dropout(),
            *dense_block(512 * 2 * 2, 4096),
            dropout(),
            *dense_block(4096, 4096),
            dropout(),
            linear(4096, num_classes),
        )
        initialise(self)
