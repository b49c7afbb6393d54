"""Building blocks that the networks in `models/` share: layers, initialisation, the shape of a classifier.

Weights are orthogonal with the gain of LeakyReLU(0.05), those of the last layer with gain 1; biases are
uniform in +-1/sqrt(fan_in). All random numbers come from torch's global generator, layer by layer in
registration order, so one seed gives one network.
"""

from __future__ import annotations

import math
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from secateur.utils.errors import UsageError
from secateur.utils.subsampled import SubsampledConv2d

SLOPE = 0.05
GAIN = math.sqrt(2 / (1 + SLOPE**2))
DROPOUT = 0.3

Layer = TypeVar("Layer", bound=nn.Module)


class Network(nn.Module):
    """An image classifier: `features`, flattened, then `classifier`.

    Subclasses register both, then call `initialise(self)`. Input (batch, in_channels, height, width),
    output (batch, num_classes) logits. Sizes no network of the class can work with raise UsageError.
    """

    #: below this image height or width some layer has nothing left to look at
    smallest_image: ClassVar[int] = 1
    features: nn.Module
    classifier: nn.Module

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__()
        require(self, "in_channels", in_channels)
        require(self, "num_classes", num_classes)
        if image_size < self.smallest_image:
            raise UsageError(
                f"{type(self).__name__}: image_size must be at least {self.smallest_image}, got {image_size}"
            )

    def forward(self, images: Tensor) -> Tensor:
        # flatten from dimension 1 and never squeeze: a batch of 1 keeps its dimension
        return self.classifier(self.features(images).flatten(1))


def require(network: nn.Module, option: str, given: int) -> None:
    """Raise UsageError unless `given`, a count, is at least 1."""
    if given < 1:
        raise UsageError(f"{type(network).__name__}: {option} must be at least 1, got {given}")


def activation() -> nn.Module:
    """LeakyReLU(0.05), not in place.

    In place it would overwrite what a forward hook on the norm before it has seen, and a full backward hook
    there would raise; it was not measurably faster.
    """
    return nn.LeakyReLU(SLOPE)


def conv(
    inputs: int, outputs: int, kernel: int, padding: int = 0, *,
    stride: int = 1, bias: bool = True, groups: int = 1,
) -> nn.Conv2d:  # fmt: skip
    """A bare convolution whose values `initialise` sets; a strided 1x1 one subsamples its input first."""
    kind = SubsampledConv2d if kernel == 1 and stride > 1 else nn.Conv2d
    options = {"stride": stride, "padding": padding, "bias": bias, "groups": groups}
    return _unset(kind, inputs, outputs, kernel, **options)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A bare linear layer whose values `initialise` sets."""
    return _unset(nn.Linear, inputs, outputs)


def conv_block(
    inputs: int, outputs: int, kernel: int, padding: int, *, stride: int = 1, bias: bool = True
) -> list[nn.Module]:
    """Convolution, batch norm, LeakyReLU: to be unpacked into a Sequential."""
    layer = conv(inputs, outputs, kernel, padding, stride=stride, bias=bias)
    return [layer, nn.BatchNorm2d(outputs), activation()]


def dense_block(inputs: int, outputs: int) -> list[nn.Module]:
    """Linear, batch norm, LeakyReLU: to be unpacked into a Sequential."""
    return [linear(inputs, outputs), nn.BatchNorm1d(outputs), activation()]


def dropout() -> nn.Module:
    """What stands before each dense layer of the larger networks."""
    return nn.Dropout(DROPOUT)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (with bias) and norms around a skip connection, after arXiv:1512.03385.

    A block with stride 2 halves the image; its skip is then a 1x1 convolution (no bias) with norm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_block(inputs, outputs, 3, 1, stride=stride),
            conv(outputs, outputs, 3, 1),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = conv(inputs, outputs, 1, stride=stride, bias=False)
            self.skip = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))
        self.activation = activation()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.activation(self.residual(inputs) + self.skip(inputs))


def initialise(network: nn.Module) -> None:
    """Set the weights and biases of all Conv2d and Linear layers.

    The last one gives the logits and no LeakyReLU follows, so its gain is 1. On the meta device there are no
    values to set, so nothing happens.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer.weight.is_meta:
            continue
        orthogonal_(layer.weight, gain=1.0 if layer is layers[-1] else GAIN)
        if layer.bias is not None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -bound, bound)


@torch.no_grad()
def orthogonal_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fill `weight`, seen as (rows, the rest), with gain times a uniformly random orthogonal matrix.

    Same distribution as `torch.nn.init.orthogonal_`, in about 0.6 of its time: the Q of a Gaussian matrix is
    a product of reflections along independent Gaussian vectors (Stewart 1980, doi:10.1137/0717034), so the
    vectors are drawn directly and the decomposition is left out.
    """
    rows, columns = len(weight), weight[0].numel()
    shape = min(rows, columns), max(rows, columns)
    # LAPACK knows no half precision; its matrices are stored by columns, hence the transpose
    dtype = torch.promote_types(weight.dtype, torch.float32)
    vectors = torch.randn(shape, dtype=dtype, device=weight.device).t().tril_()
    head = vectors.diagonal()
    sign = torch.ones_like(head).copysign_(head)
    # a Gaussian number can be exactly 0, and the last column of a square matrix is but one number
    length = torch.linalg.vector_norm(vectors, dim=0).clamp_min_(1e-30)
    # Householder's vector of x is x +- |x| e1, scaled to start with 1 (equal signs avoid cancellation)
    vectors.div_(head + sign * length).fill_diagonal_(1)
    matrix = torch.linalg.householder_product(vectors, 2 / vectors.square().sum(0))
    # as in a QR made unique by a positive diagonal of R: else not all orthogonal matrices are equally likely
    matrix.mul_(-gain * sign)
    return weight.copy_((matrix if rows >= columns else matrix.t()).reshape(weight.shape))


def _unset(kind: type[Layer], *sizes: int, **options: int | bool) -> Layer:
    """A layer with unset values: torch's own would cost time and random numbers only to be overwritten."""
    return nn.utils.skip_init(kind, *sizes, device=torch.get_default_device(), **options)
