"""Residual networks for small images: a 3x3 stem, stages of blocks, global average pooling, one linear layer."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.utils.errors import UsageError
from secateur.utils.layers import conv, conv_block, linear
from secateur.utils.limits import blocks_in
from secateur.utils.suggest import unknown

#: returns a block for its input channels, output channels and stride
Block = Callable[[int, int, int], nn.Module]
#: output channels of a bottleneck for each channel of its 3x3 convolution (arXiv:1512.03385)
EXPANSION = 4
#: blocks that networks for CIFAR have
BLOCKS = ("BasicBlock", "Bottleneck")
#: from this depth on the legacy rule of bearpaw's pytorch-classification has bottlenecks
LEGACY_DEPTH = 44


class ResidualBlock(nn.Module):
    """Layers with a skip connection, and an activation of the sum (arXiv:1512.03385).

    If the shape changes, the skip connection is a 1x1 convolution (no bias) with norm.

    Args:
        residual: Layers with norms, from `inputs` to `outputs` channels.
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the layers; 2 halves the image.
        activation: Returns the activation after the sum.
    """

    def __init__(
        self, residual: Sequence[nn.Module], inputs: int, outputs: int, stride: int,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:  # fmt: skip
        super().__init__()
        self.residual = nn.Sequential(*residual)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = conv(inputs, outputs, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.activation = activation()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.activation(self.residual(inputs) + self.skip(inputs))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions with norms, with a skip connection and an activation (arXiv:1512.03385).

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the first convolution; 2 halves the image.
        bias: Whether the 3x3 convolutions have a bias.
        activation: Returns the activation after the first norm, and after the sum.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *,
        bias: bool = False, activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:  # fmt: skip
        residual = [
            *conv_block(inputs, outputs, 3, 1, stride=stride, bias=bias, act=activation),
            conv(outputs, outputs, 3, 1, bias=bias),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(residual, inputs, outputs, stride, activation)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions (no bias) with norms, with a skip connection and ReLU (arXiv:1512.03385).

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the 3x3 convolution; 2 halves the image.
        width: Channels of the 3x3 convolution; by default a quarter of `outputs`.
        groups: Groups of the 3x3 convolution (arXiv:1611.05431).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, width: int | None = None, groups: int = 1
    ) -> None:
        inner = outputs // EXPANSION if width is None else width
        residual = [
            *conv_block(inputs, inner, 1, bias=False, act=nn.ReLU),
            *conv_block(inner, inner, 3, 1, stride=stride, groups=groups, bias=False, act=nn.ReLU),
            conv(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(residual, inputs, outputs, stride)


class PreActBlock(nn.Module):
    """Norm and ReLU before each convolution (no bias), with a skip connection (arXiv:1603.05027).

    If the shape changes, the skip connection is a 1x1 convolution without norm, else the input.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the first 3x3 convolution; 2 halves the image.
        bottleneck: Whether there are 1x1, 3x3 and 1x1 convolutions instead of two 3x3 convolutions.
        raw_skip: Whether the convolution of the skip connection gets the input of the block instead of the
            activated input.
        dropout: Share of the channels' values set to 0 before the last convolution (arXiv:1605.07146).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *,
        bottleneck: bool = False, raw_skip: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.raw_skip = raw_skip
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        if bottleneck:
            width = outputs // EXPANSION
            first = conv_block(inputs, width, 1, bias=False, act=nn.ReLU)
            first += conv_block(width, width, 3, 1, stride=stride, bias=False, act=nn.ReLU)
            last = conv(width, outputs, 1, bias=False)
        else:
            first = conv_block(inputs, outputs, 3, 1, stride=stride, bias=False, act=nn.ReLU)
            last = conv(outputs, outputs, 3, 1, bias=False)
        self.residual = nn.Sequential(*first, *([nn.Dropout(dropout)] if dropout else []), last)
        self.skip: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.skip = conv(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        active = self.activation(inputs)
        if self.skip is None:
            return self.residual(active) + inputs
        return self.residual(active) + self.skip(inputs if self.raw_skip else active)


def stages(
    depths: Sequence[int], width: int, block: Block, inputs: int | None = None
) -> tuple[list[nn.Module], int]:
    """Return the blocks of all stages, and the number of output channels.

    Args:
        depths: Number of blocks of each stage.
        width: Channels of the first stage; each later stage doubles the channels and halves height and width.
        block: Returns a block for its input channels, output channels and stride.
        inputs: Channels of the input; by default `width`.
    """
    blocks: list[nn.Module] = []
    inputs = width if inputs is None else inputs
    for stage, depth in enumerate(depths):
        outputs = width * 2**stage
        for place in range(depth):
            blocks.append(block(inputs, outputs, 2 if stage and not place else 1))
            inputs = outputs
    return blocks, inputs


def small_image_layers(
    in_channels: int, num_classes: int, depths: Sequence[int], width: int, block: Block = BasicBlock, *,
    stem: int | None = None, stem_norm: bool = True, last_norm: bool = False,
) -> tuple[nn.Module, nn.Module]:  # fmt: skip
    """Return stem, stages and global average pooling as one Sequential, and the linear layer.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        depths: Number of blocks of each stage.
        width: Output channels of the first stage; each later stage doubles them.
        block: Returns a block for its input channels, output channels and stride.
        stem: Output channels of the stem; by default `width`.
        stem_norm: Whether norm and ReLU follow the stem.
        last_norm: Whether norm and ReLU follow the last stage.
    """
    stem = width if stem is None else stem
    layers = conv_block(in_channels, stem, 3, 1, bias=False, act=nn.ReLU)
    if not stem_norm:
        del layers[1:]
    blocks, outputs = stages(depths, width, block, stem)
    layers += blocks
    if last_norm:
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), linear(outputs, num_classes)


def cifar_blocks(owner: str, depth: Any, block: Any = None, legacy: bool = False) -> tuple[int, bool]:
    """Return the number of blocks in each of the 3 stages, and whether they are bottlenecks.

    Args:
        owner: Name of the network, for messages.
        depth: Layers with weights.
        block: A name of `BLOCKS`; None for basic blocks.
        legacy: Whether a depth of 44 and above means (depth - 2) / 6 bottlenecks.

    Raises:
        UsageError: If the block is unknown, or no network has this depth; names the nearest.
    """
    if block is not None and block not in BLOCKS:
        raise UsageError(unknown(f"block of {owner}", str(block), BLOCKS), argument="block")
    bottleneck = block == "Bottleneck"
    count = blocks_in(owner, depth, 9 if bottleneck else 6, 2)
    return count, bottleneck or legacy and depth >= LEGACY_DEPTH
