"""VGG16 with batch norm: 13 convolutions, 3 dense layers.

For small images, based on arXiv:1409.1556: the last convolution is twice as wide, and the last stage is
averaged to 2x2 instead of pooled.
"""

from __future__ import annotations

from torch import nn

from secateur.utils.layers import Network, conv_block, dense_block, dropout, initialise, linear

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 1024))


class VGG16(Network):
    """VGG16 with batch norm: 13 convolutions, 3 dense layers."""

    smallest_image = 16

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        layers: list[nn.Module] = []
        inputs = in_channels
        for stage in STAGES:
            for outputs in stage:
                layers += conv_block(inputs, outputs, 3, 1)
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        # the last stage is averaged to 2x2 instead of pooled
        layers[-1] = nn.AdaptiveAvgPool2d(2)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            dropout(),
            *dense_block(inputs * 2 * 2, 4096),
            dropout(),
            *dense_block(4096, 4096),
            dropout(),
            linear(4096, num_classes),
        )
        initialise(self)
