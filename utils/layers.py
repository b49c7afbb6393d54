"""Building blocks of the networks in `models/`: layers, initialisation, and the base class of classifiers.

Weights are orthogonal with the gain of LeakyReLU(0.05), those of the last layer with gain 1; biases are
uniform in +-1/sqrt(fan_in). All random numbers come from torch's global generator, layer by layer in
registration order, so that a seed determines the network.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from secateur.utils.errors import UsageError
from secateur.utils.subsampled import subsample

SLOPE = 0.05
GAIN = math.sqrt(2 / (1 + SLOPE**2))
#: share before each linear layer of the larger networks
DROPOUT = 0.3

Layer = TypeVar("Layer", bound=nn.Module)


class Network(nn.Module):
    """An image classifier: `features`, flattened, then `classifier`, which a subclass returns from `layers`.

    Input (batch, in_channels, height, width), output (batch, num_classes) logits. Invalid sizes raise UsageError.
    """

    #: smallest image height and width for which every layer has an output
    smallest_image: ClassVar[int] = 1
    #: size that smaller images of a data set are resized to in a run; None: no resizing
    usual_image: ClassVar[int | None] = None

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__()
        require(type(self), in_channels=in_channels, num_classes=num_classes)
        if image_size < self.smallest_image:
            raise UsageError(
                f"{type(self).__name__}: image_size must be at least {self.smallest_image}, got {image_size}"
            )
        self.features, self.classifier = self.layers(in_channels, num_classes, image_size)
        self.initialise_weights()
        subsample(self)

    @abstractmethod
    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        """Return `features` and `classifier`, uninitialised."""

    def initialise_weights(self) -> None:
        """Set all weights and biases; orthogonal weights unless a subclass says otherwise."""
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        # flatten, not squeeze: a batch of 1 keeps its dimension
        return self.classifier(self.features(images).flatten(1))


def require(owner: type, **counts: int) -> None:
    """Raise UsageError unless these options of a network are at least 1."""
    for option, given in counts.items():
        if given < 1:
            raise UsageError(f"{owner.__name__}: {option} must be at least 1, got {given}")


def activation() -> nn.Module:
    """LeakyReLU(0.05), not in place.

    In place it would overwrite the output that a forward hook on the preceding norm has captured, and a full
    backward hook there would raise an error; it was not measurably faster.
    """
    return nn.LeakyReLU(SLOPE)


def conv(inputs: int, outputs: int, kernel: int, padding: int = 0, **options: int | bool) -> nn.Conv2d:
    """Return an uninitialised convolution, for `initialise`."""
    return _unset(nn.Conv2d, inputs, outputs, kernel, padding=padding, **options)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Return an uninitialised linear layer, for `initialise`."""
    return _unset(nn.Linear, inputs, outputs)


def conv_block(
    inputs: int, outputs: int, *sizes: int,
    act: Callable[[], nn.Module] = activation, norm: bool = True, **options: int | bool,
) -> list[nn.Module]:  # fmt: skip
    """Return the convolution `conv`, batch norm if `norm`, and an activation, to be unpacked into a Sequential."""
    norms = [nn.BatchNorm2d(outputs)] if norm else []
    return [conv(inputs, outputs, *sizes, **options), *norms, act()]


def dense_block(inputs: int, outputs: int) -> list[nn.Module]:
    """Return linear layer, batch norm and LeakyReLU, to be unpacked into a Sequential."""
    return [linear(inputs, outputs), nn.BatchNorm1d(outputs), activation()]


class Conv(NamedTuple):
    """A convolution of a chain, with norm and activation; by default it keeps the image size."""

    channels: int
    kernel: int = 3
    padding: int | None = None
    stride: int = 1


class Pool(NamedTuple):
    """A max pooling of a chain."""

    size: int = 2
    stride: int = 2


def convolution_chain(
    in_channels: int, table: Sequence[Conv | Pool], block: Callable[..., list[nn.Module]] = conv_block
) -> list[nn.Module]:
    """Return the layers of a table, to be unpacked into a Sequential; `block` makes those of a convolution."""
    layers: list[nn.Module] = []
    for row in table:
        if isinstance(row, Pool):
            layers.append(nn.MaxPool2d(row.size, stride=row.stride))
        else:
            padding = row.kernel // 2 if row.padding is None else row.padding
            layers += block(in_channels, row.channels, row.kernel, padding, stride=row.stride)
            in_channels = row.channels
    return layers


def dense_classifier(inputs: int, hidden: Sequence[int], num_classes: int) -> nn.Sequential:
    """Return dense layers of these widths and a linear layer, with dropout before each."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Dropout(DROPOUT), *dense_block(inputs, width)]
        inputs = width
    return nn.Sequential(*layers, nn.Dropout(DROPOUT), linear(inputs, num_classes))


class Chain(Network):
    """A network of convolutions and dense layers, given as a table by its subclass."""

    #: convolutions and poolings, in order; the last row is a convolution
    convolutions: ClassVar[tuple[Conv | Pool, ...]]
    #: height and width to which the last map is averaged
    averaged: ClassVar[int]
    #: widths of the hidden dense layers
    dense: ClassVar[tuple[int, ...]]

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        convolutions = convolution_chain(in_channels, self.convolutions)
        features = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(self.averaged))
        width = self.convolutions[-1][0]
        return features, dense_classifier(width * self.averaged**2, self.dense, num_classes)


def initialise(network: nn.Module) -> None:
    """Set the weights and biases of all Conv2d and Linear layers.

    The gain of the last layer, which is not followed by LeakyReLU, is 1. Tensors on the meta device are skipped.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer.weight.is_meta:
            continue
        orthogonal_(layer.weight, gain=1.0 if layer is layers[-1] else GAIN)
        if layer.bias is not None:
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.bias, -bound, bound)


def initialise_fan_out(network: nn.Module) -> None:
    """Set convolutions to N(0, 2 / fan_out) with zero biases, and linear layers as torch does.

    Based on arXiv:1502.01852, with fan_out = height * width of the kernel * output channels. Tensors on the meta
    device are skipped.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.is_meta:
            layer.reset_parameters()
        elif isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            fan_out = layer.out_channels * layer.weight[0, 0].numel()
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_as_torch(network: nn.Module) -> None:
    """Set all Conv2d and Linear layers as torch does; tensors on the meta device are skipped."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.is_meta:
            layer.reset_parameters()


@torch.no_grad()
def orthogonal_(weight: Tensor, gain: float = 1.0) -> Tensor:
    """Fill `weight`, viewed as (rows, -1), with a uniformly random orthogonal matrix times `gain`.

    Same distribution as `torch.nn.init.orthogonal_`, in about 0.6 of its time: the Q of a Gaussian matrix is
    a product of reflections along independent Gaussian vectors (Stewart 1980, doi:10.1137/0717034), so the
    vectors are drawn directly, without a decomposition.
    """
    rows, columns = len(weight), weight[0].numel()
    shape = min(rows, columns), max(rows, columns)
    # LAPACK does not support half precision, and stores matrices by columns, hence the transpose
    dtype = torch.promote_types(weight.dtype, torch.float32)
    vectors = torch.randn(shape, dtype=dtype, device=weight.device).t().tril_()
    head = vectors.diagonal()
    sign = torch.ones_like(head).copysign_(head)
    # a Gaussian number can be exactly 0, and the last column of a square matrix is a single number
    length = torch.linalg.vector_norm(vectors, dim=0).clamp_min_(1e-30)
    # Householder's vector of x is x +- |x| e1, scaled to start with 1 (equal signs avoid cancellation)
    vectors.div_(head + sign * length).fill_diagonal_(1)
    matrix = torch.linalg.householder_product(vectors, 2 / vectors.square().sum(0))
    # as in a QR decomposition with a positive diagonal of R; otherwise the distribution is not uniform
    matrix.mul_(-gain * sign)
    return weight.copy_((matrix if rows >= columns else matrix.t()).reshape(weight.shape))


def _unset(kind: type[Layer], *sizes: int, **options: int | bool) -> Layer:
    """Create a layer without torch's initialisation, which would be overwritten."""
    return nn.utils.skip_init(kind, *sizes, device=torch.get_default_device(), **options)
