"""Building blocks of densely connected networks (arXiv:1608.06993): each layer adds channels to its input."""

import torch
from torch import Tensor, nn

from secateur.utils.layers import conv, conv_block

#: output channels of the 1x1 convolution for each channel that a layer adds
WIDTH = 4


class DenseLayer(nn.Module):
    """Norm, ReLU and 1x1 convolution, the same with a 3x3 convolution; their output is appended to the input.

    Args:
        inputs: Channels of the input.
        growth_rate: Channels that are appended.
        dropout: Share of the appended values that is set to 0 in training.
    """

    def __init__(self, inputs: int, growth_rate: int, dropout: float = 0.0) -> None:
        super().__init__()
        width = WIDTH * growth_rate
        self.residual = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.ReLU()),
            *conv_block(inputs, width, 1, bias=False, act=nn.ReLU),
            conv(width, growth_rate, 3, 1, bias=False),
            *([nn.Dropout(dropout)] if dropout else []),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, self.residual(inputs)], 1)


def transition(inputs: int, outputs: int) -> list[nn.Module]:
    """Return norm, ReLU, 1x1 convolution and 2x2 average pooling, to be unpacked into a Sequential."""
    return [nn.BatchNorm2d(inputs), nn.ReLU(), conv(inputs, outputs, 1, bias=False), nn.AvgPool2d(2)]
