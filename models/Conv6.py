"""Conv-6 with batch norm: 6 convolutions, 3 dense layers."""

from __future__ import annotations

from torch import nn

from secateur.utils.layers import Network, conv_block, dense_block, dropout, initialise, linear


class Conv6(Network):
    """Conv-6 with batch norm: 6 convolutions, 3 dense layers."""

    smallest_image = 4

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            *conv_block(in_channels, 64, 3, 1),
            *conv_block(64, 64, 3, 1),
            nn.MaxPool2d(2),
            *conv_block(64, 128, 3, 1),
            *conv_block(128, 128, 3, 1),
            nn.MaxPool2d(2),
            *conv_block(128, 256, 3, 1),
            *conv_block(256, 256, 3, 1),
            nn.AdaptiveAvgPool2d(3),
        )
        self.classifier = nn.Sequential(
            dropout(),
            *dense_block(256 * 3 * 3, 256),
            dropout(),
            *dense_block(256, 256),
            dropout(),
            linear(256, num_classes),
        )
        initialise(self)
