"""The contract of a trainer, and the state of a run that listeners may read."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from secateur.framework.network.convolution_faults import explained, faulty_layers
from secateur.framework.network.lineage import Companion
from secateur.framework.network.memory_format import format_name, lay_out
from secateur.framework.network.size import count_macs
from secateur.framework.schedules.base import Schedule
from secateur.framework.training.loss import Loss
from secateur.utils.limits import Limit, check_all
from secateur.utils.loading.batches import BatchLoader
from secateur.utils.loading.loaders import Loaders
from secateur.utils.optimizers import unwrapped
from secateur.utils.progress import Track, no_bar


@dataclass
class Parts:
    """Components of a run."""

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    loaders: Loaders
    #: scheduler that is stepped once per epoch
    lr_schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    #: the hooks of the listeners, `secateur.framework.training.hooks.manager(...).hook`
    hooks: Any = None


@dataclass(frozen=True)
class Settings:
    """Settings of the training loop."""

    epochs: int = 10
    #: largest L2 norm of the gradient; 0 or less: no clipping
    grad_clip: float = 10.0
    #: standard deviation of the normal noise added to every gradient
    grad_noise: float = 0.0
    #: also evaluate every n batches; 0: at epoch ends only
    eval_freq: int = 0
    #: wall-clock limit in minutes; 0 or less: no limit
    max_training_minutes: float = 0.0
    #: divisor of the logits in the training loss only
    temperature: float = 1.0
    seed: int = 333
    memory_format: torch.memory_format = torch.contiguous_format
    #: moments of pruning -> targets, see `Schedule.plan`
    plan: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass
class Progress:
    """Progress of a run."""

    epoch: int = 0
    #: optimizer steps so far
    step: int = 0
    #: training samples so far
    samples: int = 0
    #: 3 x forward multiply-adds x samples, scoring passes included
    cumulative_macs: int = 0
    #: phase of the epoch, set at its start: "warmup", "pruning" or "final"
    phase: str = "final"
    #: reason why training ended before its last epoch; None if it did not
    stopped: str | None = None
    warnings: list[str] = field(default_factory=list)
    #: one entry per rewinding: number of finished epochs, and the epoch the weights were reset to
    rewinds: list[dict[str, int]] = field(default_factory=list)
    #: number of optimizer steps before a change of the memory format -> the new format
    memory_formats: dict[int, str] = field(default_factory=dict)


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Split parameters into optimizer groups with and without weight decay.

    Tensors of two or more dimensions get the weight decay of the optimizer; biases and the scales and shifts of
    norm layers get none.

    Args:
        parameters: parameters of a network, as from `model.parameters()`.

    Returns:
        Parameter groups for an optimizer of `torch.optim`; empty groups are left out.

    Example:
        >>> import torch
        >>> from secateur import decay_groups
        >>> groups = decay_groups(torch.nn.Linear(3, 2).parameters())
        >>> [(len(group["params"]), group.get("weight_decay", "default")) for group in groups]
        [(1, 'default'), (1, 0.0)]
        >>> optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=5e-4)
    """
    given = list(parameters)
    decayed, plain = [p for p in given if p.dim() > 1], [p for p in given if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Trainer(ABC):
    """Base class of the trainers, which train a network and call the hooks of the listeners.

    A subclass implements `train` and `evaluate`, or derives from `DefaultTrainer` and overrides a part of it. A
    trainer may replace layers of the network for training by `prepare_model`; `network` then returns the plain
    network, which is measured and saved, and `finish` makes it the `model`.

    Args:
        parts: model, loss, optimizer, loaders, scheduler of the learning rate, and hooks.
        settings: settings of the training loop, such as the number of epochs.
        options: options of the subclass, by keyword; each becomes an attribute of the instance.

    Attributes:
        model: network that is trained.
        optimizer: its optimizer, in the wrapper of accelerate.
        loss: loss of training and evaluation.
        loaders: loaders of training, validation (or None) and test set, and of the batches for scoring.
        lr_schedule: scheduler that is stepped once per epoch, or None.
        hooks: hooks of the listeners, see `hookimpl`.
        settings: settings of the training loop.
        progress: epoch, number of steps, phase, warnings and other state of the run.
        epoch: current or last epoch, 0-based.
        example_input: one sample on the device, (1, C, H, W) for images.
        memory_format: memory format of parameters and batches.
        macs: multiply-adds of one sample through the current network.
        companions: mappings or modules that are cut together with the network.
        confusion: confusion matrix of the last evaluation, int64 (C, C), true class by predicted class, or None.
        accelerator: the `Accelerator` that runs the backward pass.
        batch: inputs and targets of the current step, set by each step; None before the first step.
        track: function of (items, title, total) that shows a progress bar over the items.
        limits: class attribute; option of the constructor -> check of its value.
        keeps_best: class attribute; whether the network of the best epoch by validation accuracy is kept and
            tested, or that of the last epoch.
        owns_gates: class attribute; whether the trainer trains gates that prune, so that it needs no criterion. A
            literal, since it is read without importing the file.

    Example:
        >>> import torch
        >>> from secateur import Before, DefaultTrainer, Trainer
        >>> issubclass(DefaultTrainer, Trainer), Trainer.keeps_best
        (True, True)
        >>> Trainer.schedule(Before(steps=2))  # the default is the schedule of the criterion
        Before(steps=2, spacing='halving')
        >>> [len(group["params"]) for group in Trainer.parameters(torch.nn.Linear(3, 2), 0.1)]
        [1, 1]
    """

    limits: ClassVar[Mapping[str, Limit]] = {}
    keeps_best: ClassVar[bool] = True
    owns_gates: ClassVar[bool] = False

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise UsageError for options of the constructor that are outside `limits`.

        Called before data or networks are loaded.
        """
        check_all(options, cls.limits)

    @classmethod
    def schedule(cls, own: Schedule, **options: Any) -> Schedule:
        """Return the pruning schedule under this trainer; default: `own`, the schedule of the criterion."""
        return own

    @classmethod
    def least_share(cls, **options: Any) -> float:
        """Return the smallest share of channels to keep in each layer; default: 0, which keeps one channel."""
        return 0.0

    @classmethod
    def prepare_model(cls, model: nn.Module, loaders: Loaders, **options: Any) -> nn.Module:
        """Return the network to train; called before tracing and building the optimizer. Default: `model`."""
        return model

    @classmethod
    def parameters(cls, model: nn.Module, learning_rate: float, **options: Any) -> list[Any]:
        """Return the parameter groups of the optimizer; default: `decay_groups` of all parameters."""
        return decay_groups(model.parameters())

    def __init__(self, parts: Parts, settings: Settings, **options: Any) -> None:
        self.accelerator = Accelerator(cpu=next(parts.model.parameters()).device.type == "cpu")
        self.settings, self.progress = settings, Progress()
        self.loss, self.loaders, self.hooks = parts.loss, parts.loaders, parts.hooks
        self.model: nn.Module = self.accelerator.prepare(parts.model)
        self.optimizer: Any = self.accelerator.prepare(parts.optimizer)
        self.lr_schedule = parts.lr_schedule
        self.companions: list[Companion] = []
        self.confusion: Tensor | None = None
        self.batch: tuple[Tensor, Tensor] | None = None
        self.track: Track = no_bar
        self.use_memory_format(settings.memory_format)
        batch = parts.loaders.scoring_batches("random", batches=1, samples=None, batch_size=1, seed=0, step=0)
        self.example_input: Tensor = batch[0][0]
        self.macs = count_macs(self.model, self.example_input)[0]
        self.__dict__.update(options)

    @property
    def epoch(self) -> int:
        """Current or last epoch, 0-based."""
        return self.progress.epoch

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Convert 4-D parameters and all following batches to a memory format.

        A network with layers that cannot be trained safely in channels_last is converted to contiguous format,
        with a warning.
        """
        layers = faulty_layers(self.model) if memory_format == torch.channels_last else []
        if layers:
            memory_format = torch.contiguous_format
            message = f"{explained(layers)}: from step {self.progress.step} on the run is contiguous"
            if message not in self.progress.warnings:  # asked for again before the next step
                self.warn(message)
        self.memory_format = memory_format
        lay_out(self.model, memory_format, unwrapped(self.optimizer))
        used, name = self.progress.memory_formats, format_name(memory_format)
        if name not in list(used.values())[-1:]:
            used[self.progress.step] = name
        for loader in (self.loaders.train, self.loaders.val, self.loaders.test):
            if loader is not None:
                loader.memory_format = memory_format

    def count_macs(self, samples: int) -> None:
        """Add the forward and backward pass of `samples` samples to the cumulative multiply-adds."""
        self.progress.cumulative_macs += 3 * self.macs * samples

    def warn(self, message: str) -> None:
        """Pass a warning to the listeners and add it to the report."""
        self.progress.warnings.append(message)
        self.hooks.warned(trainer=self, message=message)

    def network(self) -> nn.Module:
        """Return the network to measure, save and test, which `load_model` can rebuild; it must not be changed."""
        return self.model

    def finish(self) -> None:
        """Replace `model` by the plain network at the end of training."""
        plain = self.network()
        if plain is not self.model:
            self.model = plain
            self.macs = count_macs(self.model, self.example_input)[0]

    def state(self) -> dict[str, float]:
        """Return trainer-specific numbers for each row of metrics.jsonl; default: none."""
        return {}

    def report(self) -> dict[str, Any]:
        """Return trainer-specific entries of report.json; default: none."""
        return {}

    @abstractmethod
    def train(self) -> None:
        """Train for all epochs and call the hooks."""

    @abstractmethod
    def evaluate(self, loader: BatchLoader) -> dict[str, float]:
        """Evaluate the network on all samples of a loader; the modes of its modules are restored.

        Args:
            loader: batches to evaluate.

        Returns:
            At least `acc` (share of correct samples) and `loss` (mean over samples).
        """
