"""Residual networks for small images: a 3x3 stem, stages of blocks, global average pooling, one linear layer."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from secateur.utils.layers import conv, conv_block, linear


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with norms, with a skip connection and an activation (arXiv:1512.03385).

    If the shape changes, the skip connection is a 1x1 convolution (no bias) with norm.

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
        super().__init__()
        self.residual = nn.Sequential(
            *conv_block(inputs, outputs, 3, 1, stride=stride, bias=bias, act=activation),
            conv(outputs, outputs, 3, 1, bias=bias),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = conv(inputs, outputs, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.activation = activation()

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
            *conv_block(inputs, outputs, 3, 1, stride=stride, bias=False, act=nn.ReLU),
            conv(outputs, outputs, 3, 1, bias=False),
        )
        self.skip: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.skip = conv(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        active = self.activation(inputs)
        return self.residual(active) + (inputs if self.skip is None else self.skip(active))


def stages(
    depths: Sequence[int], width: int, block: Callable[[int, int, int], nn.Module]
) -> tuple[list[nn.Module], int]:
    """Return the blocks of all stages, and the number of output channels.

    Args:
        depths: Number of blocks of each stage.
        width: Channels of the input and the first stage; each later stage doubles the channels and halves height
            and width.
        block: Returns a block for its input channels, output channels and stride.
    """
    blocks: list[nn.Module] = []
    inputs = width
    for stage, depth in enumerate(depths):
        outputs = width * 2**stage
        for _ in range(depth):
            blocks.append(block(inputs, outputs, outputs // inputs))
            inputs = outputs
    return blocks, inputs


def small_image_layers(
    in_channels: int, num_classes: int, depths: Sequence[int], width: int, preact: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Return stem, stages and global average pooling as one Sequential, and the linear layer.

    With `preact` the blocks are `PreActBlock`, and the stem has no norm and no activation.
    """
    stem = conv_block(in_channels, width, 3, 1, bias=False, act=nn.ReLU)
    if preact:
        del stem[1:]
    blocks, outputs = stages(depths, width, PreActBlock if preact else BasicBlock)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1)), linear(outputs, num_classes)
