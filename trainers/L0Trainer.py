from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.framework.network.batch_norm import measured_statistics, running_statistics
from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import evaluating
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.gated_layers.hard_concrete import (
    DROP_RATE,
    LARGEST,
    SMALLEST,
    TEMPERATURE,
    check_gates,
    expected_l0,
    l0_layers,
)
from secateur.framework.pruning.gated_layers.l0_network import Closed, add_l0_gates, cut_closed, without_gates
from secateur.framework.training.trainer import Parts, Settings, decay_groups
from secateur.trainers.DefaultTrainer import DefaultTrainer
from secateur.utils.errors import UsageError
from secateur.utils.loading.batches import BatchLoader
from secateur.utils.loading.loaders import Loaders
from secateur.utils.optimizers import unwrapped

#: per training sample what the usual 1.0 is for the 60,000 of MNIST, on the 5,400 of FASHION_MINI; with 1.0 LeNet5
#: loses its last layer there
L0_REG = 0.1
#: a gate closes at log_alpha = -2.4, and Adam moves it by at most the learning rate a step
GATE_LR = 10.0
#: the statistics of training are those of random gates
NORM_BATCHES = 20
#: images that tell whether a network looks at them at all
SOME = 64


class L0Trainer(DefaultTrainer):
    """Trains hard-concrete gates with the weights (`--l0`); what is closed in the end is cut.

    After every step log_alpha is clamped and, with beta_ema > 0, every parameter p averaged: avg <- beta * avg +
    (1 - beta) * p from avg = 0, divided by 1 - beta^t where it is used: the averaged network is the one that is
    evaluated, measured and saved, with the gates of eval mode, statistics of the norms that fit these, and without
    what they close.
    Louizos, Welling and Kingma, 2018, arXiv:1712.01312.
    """

    keeps_best: ClassVar[bool] = False

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        *,
        l0_reg: float = L0_REG,
        l2_reg: float = 5e-5,
        beta_ema: float = 0.999,
        local_rep: bool = False,
        droprate_init: float = DROP_RATE,
        temperature: float = TEMPERATURE,
        gate_lr: float = GATE_LR,
        close_norms: bool = True,
        norm_batches: int = NORM_BATCHES,
    ) -> None:
        """`l0_reg`, `l2_reg` and `beta_ema` are flags; most others are options of `prepare_model`, see there.

        `gate_lr` is the learning rate of log_alpha, in learning rates; `norm_batches` is on how many batches of
        the training set the norms' statistics are measured for an evaluation (0: those of training are taken).
        """
        super().__init__(parts, settings)
        self.beta_ema, self.norm_batches = beta_ema, norm_batches
        self._steps = 0
        self._parameters: list[Tensor] = [
            parameter for parameter in self.model.parameters() if parameter.requires_grad
        ]
        self._log_alphas: list[Tensor] = [layer.log_alpha for layer in l0_layers(self.model).values()]
        self._averages = [torch.zeros_like(parameter) for parameter in self._parameters] if beta_ema > 0 else []
        self._groups: Groups | None = None
        self._plain: tuple[int, nn.Module] | None = None
        self._closed: Closed | None = None
        self._statistics: tuple[int, list[Tensor]] | None = None
        unwrapped(self.optimizer).register_step_post_hook(self._after_step)

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Rates and factors in their ranges, switches true or false."""
        check_gates(options.get("droprate_init", DROP_RATE), options.get("temperature", TEMPERATURE))
        gate_lr = options.get("gate_lr", GATE_LR)
        if not isinstance(gate_lr, int | float) or isinstance(gate_lr, bool) or not 0 < gate_lr < float("inf"):
            raise UsageError(f"gate_lr must be a number above 0, got {gate_lr!r}")
        norm_batches = options.get("norm_batches", NORM_BATCHES)
        if not isinstance(norm_batches, int) or isinstance(norm_batches, bool) or norm_batches < 0:
            raise UsageError(f"norm_batches must be a number of batches, at least 0, got {norm_batches!r}")
        for name in ("local_rep", "close_norms"):
            if not isinstance(options.get(name, True), bool):
                raise UsageError(f"{name} must be true or false, got {options[name]!r}")

    @classmethod
    def prepare_model(cls, model: nn.Module, loaders: Loaders, **options: Any) -> nn.Module:
        """Gates on every Conv2d and Linear layer.

        `local_rep` draws gates for each sample and not for each batch; `droprate_init` is the share of gates that
        begin closed, `temperature` that of the concrete distribution; `close_norms` see `add_l0_gates`.
        """
        sample = loaders.scoring_batches("random", batches=1, samples=None, batch_size=1, seed=0, step=0)[0][0]
        samples = loaders.train.num_samples
        own: dict[str, Any] = {
            name: options[name] for name in ("local_rep", "droprate_init", "temperature") if name in options
        }
        own |= {"l0_reg": options.get("l0_reg", L0_REG), "rho": options.get("l2_reg", 5e-5) * samples}
        add_l0_gates(model, sample, options.get("close_norms", True), samples=samples, **own)
        return model

    @classmethod
    def parameters(cls, model: nn.Module, learning_rate: float, **options: Any) -> list[Any]:
        """The gates learn `gate_lr` times as fast as the weights."""
        gates = [layer.log_alpha for layer in l0_layers(model).values()]
        others = [one for one in model.parameters() if not any(one is gate for gate in gates)]
        fast = {"params": gates, "lr": learning_rate * options.get("gate_lr", GATE_LR)}
        return [*decay_groups(others), *([fast] if gates else [])]

    def evaluate(self, loader: BatchLoader) -> dict[str, float]:
        """As in DefaultTrainer, of the averaged network."""
        with self._averaged():
            return super().evaluate(loader)

    def network(self) -> nn.Module:
        """The averaged network without gates and without what they close."""
        if not l0_layers(self.model):
            return self.model
        if self._plain is None or self._plain[0] != self._steps:
            with self._averaged():
                if self._groups is None:
                    self._groups = channel_groups(without_gates(self.model), self.example_input)
                plain, self._closed = cut_closed(self.model, self._groups, self.example_input)
            self._plain = self._steps, plain
        return self._plain[1]

    def finish(self) -> None:
        """From here on the network is plain; says what closed gates left of it that nobody would expect."""
        super().finish()
        if self._closed is None:
            return
        if self._closed.closed and self._says_the_same():
            share = f"{self._closed.closed} of {self._closed.gates} gates are closed"
            self.warn(f"L0: {share} and the network says the same of every image: --l0_reg is too strong")
        if self._closed.left:
            self.warn(_left_as_zeros(self._closed))

    @torch.no_grad()
    def _says_the_same(self) -> bool:
        """Whether the outputs for some training images are equal to the last bit."""
        loader = self.loaders.train
        chunk = torch.arange(min(SOME, loader.num_samples))
        inputs, _ = next(iter(loader.plain([chunk])))
        with evaluating(self.model):
            outputs = self.model(inputs)
        return len(inputs) > 1 and bool((outputs == outputs[:1]).all())

    def state(self) -> dict[str, float]:
        """norm/l0: the expected number of weights and biases that are not zero, while there are gates."""
        return {"norm/l0": expected_l0(self.model)} if l0_layers(self.model) else {}

    def report(self) -> dict[str, Any]:
        """How many gates there were, and what became of those that closed."""
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
        if self._averages:
            torch._foreach_lerp_(self._averages, self._parameters, 1 - self.beta_ema)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averages in place of the parameters, with statistics of their own; all come back to the last bit."""
        statistics = running_statistics(self.model)
        tensors = [*self._parameters, *statistics]
        if not l0_layers(self.model):
            yield
            return
        with torch.no_grad():
            own = [tensor.clone() for tensor in tensors]
        try:
            if self._averages and self._steps:
                self._copy(self._parameters, torch._foreach_div(self._averages, 1 - self.beta_ema**self._steps))
                Masks(self.model).apply()  # they are applied after the average was taken
            if self.norm_batches and statistics:
                self._copy(statistics, self._measured())
            yield
        finally:
            self._copy(tensors, own)

    @torch.no_grad()
    def _copy(self, targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)

    def _measured(self) -> list[Tensor]:
        """The norms' statistics for the gates of eval mode, measured once for each step."""
        if self._statistics is None or self._statistics[0] != self._steps:
            batches = self.loaders.scoring_batches(
                "random",
                batches=self.norm_batches,
                samples=None,
                batch_size=self.loaders.train.batch_size,
                seed=self.settings.seed,
                step=0,
            )
            inputs = [images.contiguous(memory_format=self.memory_format) for images, _ in batches]
            self._statistics = self._steps, measured_statistics(self.model, inputs)
            self.progress.cumulative_macs += self.macs * sum(map(len, inputs))
        return self._statistics[1]


def _left_as_zeros(closed: Closed) -> str:
    """Return a message that says why closed gates were not cut, with the number of gates for each reason."""
    others = closed.left - closed.inputs
    parts = []
    if closed.inputs:
        parts.append(f"{closed.inputs} belong to inputs of the network, which are masked and never cut")
    if others:
        parts.append(f"{others} belong to channels that are kept, because another gate of the channel is open, it "
                     "cannot be cut exactly, or it is the last of its layer")  # fmt: skip
    return f"L0: {closed.left} of {closed.closed} closed gates were masked, not cut: {'; '.join(parts)}"
