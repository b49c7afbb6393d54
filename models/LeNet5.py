"""LeNet-5 with batch norm: 3 convolutions, 2 dense layers."""

from __future__ import annotations

from torch import nn

from secateur.utils.layers import Network, conv_block, dense_block, dropout, initialise, linear


class LeNet5(Network):
    """LeNet-5 with batch norm: 3 convolutions, 2 dense layers."""

    smallest_image = 28

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            *conv_block(in_channels, 6, 5, 2),
            nn.MaxPool2d(2),
            *conv_block(6, 16, 5, 0),
            nn.MaxPool2d(2),
            *conv_block(16, 120, 5, 0),
            nn.AdaptiveAvgPool2d(3),
        )
        self.classifier = nn.Sequential(
            dropout(),
            *dense_block(120 * 3 * 3, 84),
            dropout(),
            linear(84, num_classes),
        )
        initialise(self)
