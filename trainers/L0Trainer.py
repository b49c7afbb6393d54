from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur import DefaultTrainer, Groups, Masks, channel_groups, decay_groups
from secateur.framework.network.batch_norm import measured_statistics, running_statistics
from secateur.framework.network.preserve import evaluating
from secateur.framework.pruning.gated_layers.hard_concrete import (
    DROP_RATE,
    LARGEST,
    SMALLEST,
    TEMPERATURE,
    expected_l0,
    l0_layers,
)
from secateur.framework.pruning.gated_layers.l0_network import Closed, add_l0_gates, cut_closed, without_gates
from secateur.framework.training.trainer import Parts, Settings
from secateur.utils.limits import Limit, check_switch, number, whole
from secateur.utils.loading.batches import BatchLoader
from secateur.utils.loading.loaders import Loaders
from secateur.utils.optimizers import unwrapped

#: the usual 1.0 for the 60,000 samples of MNIST, scaled to the 5,400 of FASHION_MINI, where 1.0 closes all gates
#: of the last layer of LeNet5
L0_REG = 0.1
L2_REG = 5e-5
#: a gate closes at log_alpha = -2.4, and Adam changes it by at most the learning rate per step
GATE_LR = 10.0
#: batches to measure norm statistics on; those of training were computed with random gates
NORM_BATCHES = 20
#: number of images to check whether the output depends on the input
SOME = 64


class L0Trainer(DefaultTrainer):
    """Trains hard-concrete gates together with the weights (`--l0`) and cuts the channels of closed gates.

    After every step log_alpha is clamped and, with beta_ema > 0, every parameter p is averaged by
    avg <- beta * avg + (1 - beta) * p from avg = 0, with bias correction by 1 - beta^t. The averaged network is
    evaluated, measured and saved, with the gates of eval mode, norm statistics measured for these gates, and
    without the closed channels.
    Louizos, Welling and Kingma, 2018, arXiv:1712.01312.
    """

    keeps_best: ClassVar[bool] = False
    owns_gates: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, Limit]] = {
        "droprate_init": number(above=0, below=1),
        "temperature": number(above=0),
        "gate_lr": number(above=0),
        "norm_batches": whole(0),
        "local_rep": check_switch,
        "close_norms": check_switch,
    }

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        *,
        l0_reg: float = L0_REG,
        l2_reg: float = L2_REG,
        beta_ema: float = 0.999,
        local_rep: bool = False,
        droprate_init: float = DROP_RATE,
        temperature: float = TEMPERATURE,
        gate_lr: float = GATE_LR,
        close_norms: bool = True,
        norm_batches: int = NORM_BATCHES,
    ) -> None:
        """Initialise the trainer.

        Args:
            parts, settings: see `Trainer`.
            l0_reg: cost of a nonzero weight, divided by the number of training samples.
            l2_reg: cost of the squared weights, per training sample.
            beta_ema: decay of the averaged parameters, in [0, 1); 0 disables averaging.
            local_rep: draw gates for each sample instead of each batch.
            droprate_init: initial share of closed gates.
            temperature: temperature of the concrete distribution.
            gate_lr: learning rate of log_alpha, as a multiple of the learning rate.
            close_norms: see `add_l0_gates`.
            norm_batches: number of training batches that norm statistics are measured on before an evaluation; 0
                uses the statistics of training.
        """
        super().__init__(parts, settings)
        self.beta_ema, self.norm_batches = beta_ema, norm_batches
        self._steps = 0
        self._parameters: list[Tensor] = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._log_alphas: list[Tensor] = [layer.log_alpha for layer in l0_layers(self.model).values()]
        self._averages = [torch.zeros_like(parameter) for parameter in self._parameters] if beta_ema > 0 else []
        self._groups: Groups | None = None
        #: of the averaged network at this step: the network without gates, and its norm statistics
        self._plain: nn.Module | None = None
        self._statistics: list[Tensor] | None = None
        self._closed: Closed | None = None
        unwrapped(self.optimizer).register_step_post_hook(self._after_step)

    @classmethod
    def prepare_model(
        cls, model: nn.Module, loaders: Loaders, *, l0_reg: float = L0_REG, l2_reg: float = L2_REG, **options: Any
    ) -> nn.Module:
        """Add gates to every Conv2d and Linear layer; for the options see the constructor."""
        sample = loaders.scoring_batches("random", batches=1, samples=None, batch_size=1, seed=0, step=0)[0][0]
        samples = loaders.train.num_samples
        own = ("close_norms", "local_rep", "droprate_init", "temperature")
        gates = {name: options[name] for name in own if name in options}
        add_l0_gates(model, sample, samples=samples, l0_reg=l0_reg, rho=l2_reg * samples, **gates)
        return model

    @classmethod
    def parameters(
        cls, model: nn.Module, learning_rate: float, *, gate_lr: float = GATE_LR, **options: Any
    ) -> list[Any]:
        """Return the parameter groups; the learning rate of the gates is `gate_lr` times that of the weights."""
        gates = [layer.log_alpha for layer in l0_layers(model).values()]
        others = [weight for weight in model.parameters() if not any(weight is gate for gate in gates)]
        fast = {"params": gates, "lr": learning_rate * gate_lr}
        return [*decay_groups(others), *([fast] if gates else [])]

    def evaluate(self, loader: BatchLoader) -> dict[str, float]:
        """Evaluate the averaged network as `DefaultTrainer.evaluate` does."""
        with self._averaged():
            return super().evaluate(loader)

    def network(self) -> nn.Module:
        """Return the averaged network without gates and without the channels that they close."""
        if not l0_layers(self.model):
            return self.model
        if self._plain is None:
            with self._averaged():
                if self._groups is None:
                    self._groups = channel_groups(without_gates(self.model), self.example_input)
                self._plain, self._closed = cut_closed(self.model, self._groups, self.example_input)
        return self._plain

    def finish(self) -> None:
        """Replace the network by the plain one, and warn of closed gates that were not cut."""
        super().finish()
        if self._closed is None:
            return
        if self._closed.closed and self._says_the_same():
            share = f"{self._closed.closed} of {self._closed.gates} gates are closed"
            self.warn(f"L0: {share} and the output is the same for every image: l0_reg is too large")
        if self._closed.left:
            self.warn(_left_as_zeros(self._closed))

    @torch.no_grad()
    def _says_the_same(self) -> bool:
        """Whether the outputs for some training images are bitwise equal."""
        ((inputs, _),) = self.loaders.scoring_batches(
            "random", batches=1, samples=None, batch_size=SOME, seed=self.settings.seed, step=0
        )
        with evaluating(self.model):
            outputs = self.model(inputs)
        return len(inputs) > 1 and bool((outputs == outputs[:1]).all())

    def state(self) -> dict[str, float]:
        """Return norm/l0, the expected number of nonzero weights and biases, while there are gates."""
        return {"norm/l0": expected_l0(self.model)} if l0_layers(self.model) else {}

    def report(self) -> dict[str, Any]:
        """Return the number of gates, and how many are closed, cut, and masked with zeros."""
        if self._closed is None:
            return {}
        found = self._closed
        return {"gates": found.gates, "closed": found.closed, "cut": found.cut, "left_as_zeros": found.left,
                "inputs_as_zeros": found.inputs}  # fmt: skip

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self._log_alphas:
            torch._foreach_clamp_min_(self._log_alphas, SMALLEST)
            torch._foreach_clamp_max_(self._log_alphas, LARGEST)
        self._steps += 1
        self._plain = self._statistics = None
        if self._averages:
            torch._foreach_lerp_(self._averages, self._parameters, 1 - self.beta_ema)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Use the averaged parameters and their norm statistics inside the block; restore all tensors exactly."""
        if not l0_layers(self.model):
            yield
            return
        statistics = running_statistics(self.model)
        tensors = [*self._parameters, *statistics]
        saved = [tensor.detach().clone() for tensor in tensors]
        try:
            with torch.no_grad():
                if self._averages and self._steps:
                    averages = torch._foreach_div(self._averages, 1 - self.beta_ema**self._steps)
                    torch._foreach_copy_(self._parameters, averages)
                    Masks(self.model).apply()  # the averages were computed before the masks were applied
                if self.norm_batches and statistics:
                    torch._foreach_copy_(statistics, self._measured())
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(tensors, saved)

    def _measured(self) -> list[Tensor]:
        """Return the norm statistics for the gates of eval mode, measured once per optimizer step."""
        if self._statistics is None:
            size, seed = self.loaders.train.batch_size, self.settings.seed
            batches = self.loaders.scoring_batches(
                "random", batches=self.norm_batches, samples=None, batch_size=size, seed=seed, step=0
            )
            inputs = [images.contiguous(memory_format=self.memory_format) for images, _ in batches]
            self._statistics = measured_statistics(self.model, inputs)
            self.progress.cumulative_macs += self.macs * sum(map(len, inputs))
        return self._statistics


def _left_as_zeros(closed: Closed) -> str:
    """Return a message that says why closed gates were not cut, with the number of gates for each reason."""
    reasons = {
        "inputs of the network, which are masked and never cut": closed.inputs,
        "channels that are kept, because another gate of the channel is open, it cannot be cut exactly, or it is "
        "the last of its layer": closed.left - closed.inputs,
    }
    parts = "; ".join(f"{count} belong to {reason}" for reason, count in reasons.items() if count)
    return f"L0: {closed.left} of {closed.closed} closed gates were masked, not cut: {parts}"
