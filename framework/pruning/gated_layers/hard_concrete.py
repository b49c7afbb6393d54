"""Layers with hard-concrete gates, whose expected number of open gates is differentiable.

Louizos, Welling and Kingma, 2018, arXiv:1712.01312. With a = -0.1, b = 1.1 and u uniform in (eps, 1 - eps) a gate
is

    z = clip(sigmoid((ln u - ln(1 - u) + log_alpha) / temperature) * (b - a) + a, 0, 1)      in training
    z = clip(sigmoid(log_alpha) * (b - a) + a, 0, 1)                                          in eval mode

    P(z = 0) = Q = sigmoid(temperature * ln(-a / b) - log_alpha), clamped to [eps, 1 - eps].

The layers are subclasses of torch's own with an additional parameter, `log_alpha`; names and shapes of weights do
not change.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from secateur.utils.limits import number
from secateur.utils.subsampled import SubsampledConv2d

LOW, HIGH, EPSILON = -0.1, 1.1, 1e-6
#: log_alpha is clamped to this range, outside of which a gate has almost no gradient
SMALLEST, LARGEST = math.log(1e-2), math.log(1e2)
TEMPERATURE, DROP_RATE, SPREAD = 2 / 3, 0.5, 0.01


class HardConcrete(nn.Module):
    """Base of gated layers: the gates, their sampling, and their penalty.

    A subclass also inherits from a layer of torch, and its constructor has the arguments of that layer and the
    options of `add_log_alpha`.
    """

    log_alpha: nn.Parameter
    weight: Any
    bias: Any
    temperature: float
    local_rep: bool
    #: lambda, the penalty of a non-zero weight; rho, twice that of its square; N, the number of training samples
    l0_reg: float
    rho: float
    samples: int
    #: which gates were open in the last forward pass
    is_open: Tensor
    #: dimension of the weight that has the gates
    gate_dim: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        own = inspect.signature(self.add_log_alpha).parameters
        super().__init__(*arguments, **{name: value for name, value in options.items() if name not in own})
        self.add_log_alpha(**{name: value for name, value in options.items() if name in own})

    def add_log_alpha(
        self: Any,
        *,
        droprate_init: float = DROP_RATE,
        temperature: float = TEMPERATURE,
        local_rep: bool = False,
        l0_reg: float = 1.0,
        rho: float = 0.0,
        samples: int = 1,
    ) -> None:
        """Add the gates to the layer: log_alpha ~ N(ln(1 - d) - ln(d), 0.01^2) for the initial drop rate d.

        Args:
            droprate_init: The initial drop rate d, in (0, 1).
            temperature: Temperature of the concrete distribution, above 0.
            local_rep: Whether gates are sampled for every sample, not once for the batch.
            l0_reg: lambda, the penalty of a non-zero weight.
            rho: Twice the penalty of a squared weight.
            samples: The number of training samples.

        Raises:
            UsageError: For a drop rate outside (0, 1) or a temperature that is not above 0.
        """
        number(above=0, below=1)("droprate_init", droprate_init)
        number(above=0)("temperature", temperature)
        weight = self.weight
        noise = torch.randn(weight.shape[self.gate_dim])  # on the CPU: the same on every device
        start = math.log(1 - droprate_init) - math.log(droprate_init)
        self.log_alpha = nn.Parameter((start + SPREAD * noise).to(weight.device, weight.dtype))
        self.temperature, self.local_rep = temperature, local_rep
        self.l0_reg, self.rho, self.samples = l0_reg, rho, samples

    def open_probability(self) -> Tensor:
        """Return P(z != 0) of every gate, `(gates,)`."""
        closed = torch.sigmoid(self.temperature * math.log(-LOW / HIGH) - self.log_alpha)
        return 1 - closed.clamp(EPSILON, 1 - EPSILON)

    def mean_gates(self) -> Tensor:
        """Return the gates of eval mode, `(gates,)`."""
        return (torch.sigmoid(self.log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)

    def draw_gates(self, *shape: int) -> Tensor:
        """Sample the gates of training, `(*shape, gates)`."""
        u = self.log_alpha.new_empty(*shape, len(self.log_alpha)).uniform_(EPSILON, 1 - EPSILON)
        soft = torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / self.temperature)
        return (soft * (HIGH - LOW) + LOW).clamp(0, 1)

    def gates(self: Any, samples: int) -> Tensor:
        """Return the gates of this forward pass: `(gates,)`; in training with `local_rep` `(samples, gates)`."""
        shape = (samples,) if self.local_rep else ()
        z = self.draw_gates(*shape) if self.training else self.mean_gates()
        self.__dict__["is_open"] = z.detach() != 0
        return z

    def penalty(self) -> Tensor:
        """Return -R / N, the expected penalty of non-zero weights and gated biases, a scalar.

        R = sum over gates of (1 - Q) * sum over the gate's weights of (-rho / 2 * w^2 - lambda), plus
        -rho / 2 * b^2 for each bias without a gate.
        """
        others = [dim for dim in range(self.weight.dim()) if dim != self.gate_dim]
        cost = torch.full_like(self.log_alpha, self.l0_reg * self.weights_per_gate(), requires_grad=False)
        if self.rho > 0:
            cost = cost + 0.5 * self.rho * self.weight.square().sum(others)
        free = torch.zeros((), device=cost.device, dtype=cost.dtype)
        if self.bias is not None:
            squares = 0.5 * self.rho * self.bias.square()
            if self.gate_dim == 0:
                cost = cost + squares + self.l0_reg
            else:
                free = squares.sum()
        return ((self.open_probability() * cost).sum() + free) / self.samples

    def expected_l0(self) -> Tensor:
        """Return the expected number of non-zero weights and biases, a scalar."""
        gated_bias = self.bias is not None and self.gate_dim == 0
        expected = self.open_probability().sum() * (self.weights_per_gate() + gated_bias)
        return expected if gated_bias or self.bias is None else expected + self.bias.numel()

    def weights_per_gate(self) -> int:
        """Return the number of weights per gate."""
        return self.weight.numel() // max(1, self.weight.shape[self.gate_dim])


class L0Linear(HardConcrete, nn.Linear):
    """A linear layer with a gate on each input unit.

    Input `(samples, ..., in_features)`. The bias has no gate.
    """

    gate_dim = 1

    def forward(self, input: Tensor) -> Tensor:
        z = self.gates(len(input))
        if z.dim() > 1:  # one gate vector per sample
            z = z.view(len(input), *[1] * (input.dim() - 2), -1)
        return nn.Linear.forward(self, input * z)


class L0Conv2d(HardConcrete, nn.Conv2d):
    """A convolution with a gate on each output channel, its bias included.

    Input `(samples, in_channels, height, width)`. A closed gate makes the channel zero.
    """

    gate_dim = 0

    def forward(self, input: Tensor) -> Tensor:
        z = self.gates(len(input))
        return nn.Conv2d.forward(self, input) * z[..., None, None]


class L0SubsampledConv2d(L0Conv2d, SubsampledConv2d):
    """A strided 1x1 `L0Conv2d` that subsamples its input first."""


class L0BatchNorm2d(nn.BatchNorm2d):
    """A batch norm after an `L0Conv2d` whose output is zero for a channel with a closed gate.

    Otherwise the norm's shift would be a constant, and a channel with a constant cannot be cut exactly if a
    convolution with zero padding reads it.
    """

    #: the convolution, in a tuple so that it is not registered as a submodule
    gated_by: tuple[L0Conv2d]

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.gated_by[0].is_open[..., None, None]


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: L0Linear,
    nn.Conv2d: L0Conv2d,
    SubsampledConv2d: L0SubsampledConv2d,
}


def l0_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers with hard-concrete gates by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, HardConcrete)}


def expected_l0(model: nn.Module) -> float:
    """Return the expected number of non-zero weights and biases of the gated layers."""
    return sum(float(layer.expected_l0().detach()) for layer in l0_layers(model).values())
