"""Convolutions only, with batch norm: 5 convolutions, no dense layer."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.utils.layers import Network, conv, conv_block, initialise


class ConvOnly(Network):
    """Convolutions only, with batch norm: 5 convolutions, no dense layer."""

    smallest_image = 26

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            *conv_block(in_channels, 64, 5, 1),
            nn.MaxPool2d(2),
            *conv_block(64, 128, 3, 1),
            nn.MaxPool2d(2),
            *conv_block(128, 64, 3, 1),
            nn.MaxPool2d(2),
            *conv_block(64, 32, 3, 1),
            nn.MaxPool2d(3),
        )
        self.classifier = nn.Sequential(conv(32, num_classes, 3, 1), nn.AdaptiveAvgPool2d(1))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        # the classifier is a convolution, so flatten its output
        return self.classifier(self.features(images)).flatten(1)
