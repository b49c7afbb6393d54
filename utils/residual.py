"""Residual networks for small images: a 3x3 stem, stages of blocks, one average, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.utils.layers import conv


class PlainBlock(nn.Module):
    """Two 3x3 convolutions (no bias) with norms around a skip connection, ReLU, after arXiv:1512.03385.

    Where the shape changes the skip is a 1x1 convolution (no bias) with norm.
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
    """Norm and ReLU before each of two 3x3 convolutions (no bias), after arXiv:1603.05027.

    Where the shape changes the skip is a bare 1x1 convolution of the activated input; else it is the input.
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
    """Return stem, stages and global average as one Sequential, and the number of channels that come out.

    depths: blocks in each stage. width: channels of the stem and the first stage; each later stage has twice
    the channels of the one before and half its height and width. preact: blocks of `PreActBlock`, whose stem
    is a bare convolution.
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
