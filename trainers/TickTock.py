import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar

from torch import Tensor, nn

from secateur import DefaultTrainer, Never, Schedule, UsageError
from secateur.framework.network.layers import prunable_layers
from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.gated_layers.gated_batch_norm import CLAMP, add_gates, fold_gates, gated_norms
from secateur.framework.schedules.base import even_targets, spread
from secateur.framework.training.trainer import Parts, Settings
from secateur.trainers.DefaultTrainer import Batch
from secateur.utils.limits import Limit, check_all, number, optional, whole
from secateur.utils.loading.loaders import Loaders
from secateur.utils.optimizers import scaled_rates

TICK, TOCK, FINE_TUNE = "tick", "tock", "fine-tune"
#: smallest share of channels to keep in each layer; without it the ranking may keep only one
KEEP_SHARE = 0.1
GATE_REG, LOW_LR = 1e-3, 0.1
#: limits of the numbers of epochs
EPOCHS = {"tick": optional(whole(1)), "tock": optional(whole(0)), "fine_tune": optional(whole(0))}


@dataclass(frozen=True)
class Phases(Schedule):
    """Schedule of cycles of a Tock and a Tick, and of fine-tuning; every epoch of a Tick ends with a pruning step.

    The values are numbers of epochs. None is derived from the length of the run: Tock and Tick take 1/7 each in
    two cycles, and fine-tuning the remaining epochs, such as 10, 10, 10, 10 and 30 of 70. Epochs that do not fill
    a cycle lengthen the first Tock.
    """

    tick: int | None = None
    tock: int | None = None
    fine_tune: int | None = None

    def __post_init__(self) -> None:
        check_all(vars(self), EPOCHS)

    def phases(self, epochs: int) -> list[str]:
        """Return the phase of each epoch; raise UsageError if fine-tuning takes all epochs."""
        part = max(1, epochs // 7)
        tick = part if self.tick is None else self.tick
        tock = part if self.tock is None else self.tock
        fine = self.fine_tune
        if fine is None:
            cycles = 2 if epochs >= 2 * (tick + tock) + 1 else 1
            fine = max(0, min(1, epochs - 1), epochs - cycles * (tick + tock))
        cyclic = epochs - fine
        if cyclic < 1:
            raise UsageError(f"nothing would be pruned: of {epochs} epochs TickTock fine-tunes for {fine}")
        cycles = max(1, cyclic // (tick + tock))
        tick = min(tick, max(1, cyclic - min(1, tock)))
        first = cyclic - cycles * tick - (cycles - 1) * tock
        tocks = [first] + [tock] * (cycles - 1)
        before = [phase for length in tocks for phase in [TOCK] * length + [TICK] * tick]
        return before + [FINE_TUNE] * fine

    def plan(self, limit: float, epochs: int) -> dict[int, list[float]]:
        """Return even targets for the epochs of the Ticks; after the last target the run fine-tunes."""
        ends = [epoch for epoch, phase in enumerate(self.phases(epochs)) if phase == TICK]
        return spread(even_targets(limit), ends)


class TickTock(DefaultTrainer):
    """Trains gates on the batch norms in turns with the network, and prunes after each epoch of a Tick.

    Gates are initialised with the scales of the norms and folded back at the end. Tick: gates, norms and the last
    layer are trained with `low_lr` times the learning rate, then the criterion prunes. Tock: all parameters are
    trained with the penalty gate_reg * sum |gate|, and the learning rate rises from `low_lr` times its value to
    its value and falls again. Then the network is fine-tuned. You, Yan, Ye, Ma and Wang, 2019, arXiv:1909.08174.
    """

    limits: ClassVar[Mapping[str, Limit]] = {
        **EPOCHS,
        **dict.fromkeys(("gate_reg", "low_lr", "clamp"), number(least=0)),
        "keep_share": number(least=0, below=1),
    }

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        *,
        tick: int | None = None,
        tock: int | None = None,
        fine_tune: int | None = None,
        gate_reg: float = GATE_REG,
        low_lr: float = LOW_LR,
        clamp: float = CLAMP,
        keep_share: float = KEEP_SHARE,
    ) -> None:
        """Initialise the trainer.

        Args:
            parts, settings: see `Trainer`.
            tick, tock, fine_tune: numbers of epochs of a Tick, a Tock and of fine-tuning; None: see `Phases`.
            gate_reg: factor of the penalty on the gates in a Tock.
            low_lr: factor of the learning rate in a Tick, and at both ends of a Tock.
            clamp: see `add_gates`.
            keep_share: smallest share of channels to keep in each layer, and at least one channel; targets beyond
                it are not reached.
        """
        super().__init__(parts, settings)
        self.gate_reg, self.low_lr = gate_reg, low_lr
        #: phase of each epoch; fine-tuning after the last target
        self.phases = [FINE_TUNE] * settings.epochs
        if settings.plan:
            last = max(settings.plan) + 1
            self.phases[:last] = Phases(tick, tock, fine_tune).phases(settings.epochs)[:last]
        self._first_step = 0

    @classmethod
    def least_share(cls, *, keep_share: float = KEEP_SHARE, **options: Any) -> float:
        """Return `keep_share`, relative to the dense network."""
        return keep_share

    @classmethod
    def schedule(cls, own: Schedule, **options: Any) -> Schedule:
        """Return the schedule of the Ticks, which replaces that of the criterion."""
        return own if isinstance(own, Never) else Phases(**{name: options.get(name) for name in EPOCHS})

    @classmethod
    def prepare_model(
        cls, model: nn.Module, loaders: Loaders, *, clamp: float = CLAMP, **options: Any
    ) -> nn.Module:
        """Add gates to the batch norms."""
        add_gates(model, clamp)
        return model

    @property
    def phase(self) -> str:
        """Phase of the epoch: "tick", "tock" or "fine-tune"."""
        return self.phases[self.epoch]

    def train(self) -> None:
        """Train as `DefaultTrainer` does; warn if the network has no gates."""
        if TICK in self.phases and not gated_norms(self.model):
            self.warn("TickTock: the network has no batch norm with a scale: there are no gates to train")
        super().train()

    def train_epoch(self) -> dict[str, float]:
        """Train for one epoch of the phase."""
        self._first_step = self.progress.step
        with self._frozen() if self.phase == TICK else nullcontext():
            return super().train_epoch()

    def penalty(self) -> Tensor:
        """Return the penalty of the loss, plus gate_reg * sum |gate| in a Tock."""
        total = super().penalty()
        if self.phase == TOCK:
            for norm in gated_norms(self.model).values():
                total = total + self.gate_reg * norm.gate.abs().sum()
        return total

    def network(self) -> nn.Module:
        """Return a copy with the gates folded into the norms."""
        if not gated_norms(self.model):
            return self.model
        plain = copy.deepcopy(self.model)
        fold_gates(plain)
        return plain

    def report(self) -> dict[str, Any]:
        """Return the number of epochs of each phase."""
        return {phase: self.phases.count(phase) for phase in (TICK, TOCK, FINE_TUNE)}

    def _update(self, batch: Batch) -> None:
        with scaled_rates(self.optimizer, self._share()):
            super()._update(batch)

    def _share(self) -> float:
        """Return the factor of the learning rate at this step: a triangle over each Tock."""
        if self.phase != TOCK:
            return self.low_lr if self.phase == TICK else 1.0
        before = sum(1 for _ in takewhile(TOCK.__eq__, reversed(self.phases[: self.epoch])))
        length = before + sum(1 for _ in takewhile(TOCK.__eq__, self.phases[self.epoch :]))
        done = before + (self.progress.step - self._first_step + 0.5) / max(1, len(self.loaders.train))
        return self.low_lr + (1 - self.low_lr) * (1 - abs(2 * done / length - 1))

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Freeze the weights and biases of all layers except the last; their optimizer state is kept."""
        last = lineage_of(self.model).output_layers or ()
        layers = [module for name, module in prunable_layers(self.model).items() if name not in last]
        frozen = [weight for layer in layers for weight in layer.parameters() if weight.requires_grad]
        if not any(weight.requires_grad for weight in {*self.model.parameters()} - {*frozen}):
            frozen = []  # otherwise no parameter would be trained
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
