"""Residual networks for small images: a 3x3 stem, stages of blocks, global average pooling, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.utils.layers import conv


class PlainBlock(nn.Module):
    """Two 3x3 convolutions (no bias) with norms, with a skip connection and ReLU (arXiv:1512.03385).

    If the shape changes, the skip connection is a 1x1 convolution (no bias) with norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv(inputs, outputs, 3, 1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            conv(outputs, outputs, 3, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = conv(inputs, outputs, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.activation = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.activation(self.residual(inputs) + self.skip(inputs))


class PreActBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions (no bias), with a skip connection (arXiv:1603.05027).

    If the shape changes, the skip connection is a 1x1 convolution of the activated input, else the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            conv(inputs, outputs, 3, 1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            conv(outputs, outputs, 3, 1, bias=False),
        )
        self.skip: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.skip = conv(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        active = self.activation(inputs)
        return self.residual(active) + (inputs if self.skip is None else self.skip(active))


def small_image_features(
    in_channels: int, depths: Sequence[int], width: int, preact: bool = False
) -> tuple[nn.Sequential, int]:
    """Return stem, stages and global average pooling as one Sequential, and the number of output channels.

    Args:
        in_channels: Channels of the images.
        depths: Number of blocks of each stage.
        width: Channels of the stem and the first stage; each later stage doubles the channels and halves height
            and width.
        preact: Use `PreActBlock`, with a stem without norm and activation.
    """
    layers: list[nn.Module] = [conv(in_channels, width, 3, 1, bias=False)]
    if not preact:
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    block = PreActBlock if preact else PlainBlock
    inputs = width
    for stage, depth in enumerate(depths):
        outputs = width * 2**stage
        for _ in range(depth):
            layers.append(block(inputs, outputs, stride=outputs // inputs))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), inputs
