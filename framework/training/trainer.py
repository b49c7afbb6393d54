"""What every trainer has, and what listeners may read of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from secateur.utils.loading.batches import BatchLoader
from secateur.utils.loading.loaders import Loaders
from secateur.utils.optimizers import unwrapped


@dataclass
class Parts:
    """What a run is put together from."""

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    loaders: Loaders
    #: stepped once an epoch
    lr_schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    #: the hooks of the listeners, `secateur.framework.training.hooks.manager(...).hook`
    hooks: Any = None


@dataclass(frozen=True)
class Settings:
    """How long and how the network is trained."""

    epochs: int = 10
    #: largest L2 norm of the gradient; 0 or less: no clipping
    grad_clip: float = 10.0
    #: standard deviation of the normal noise added to every gradient
    grad_noise: float = 0.0
    #: also evaluate every n batches; 0: at epoch ends only
    eval_freq: int = 0
    #: wall-clock limit; 0 or less: none
    max_training_minutes: float = 0.0
    #: the logits are divided by it in the training loss, and nowhere else
    temperature: float = 1.0
    seed: int = 333
    memory_format: torch.memory_format = torch.contiguous_format
    #: when the network is pruned: moment -> targets, see `schedule`
    plan: Mapping[int, Sequence[float]] = field(default_factory=dict)


@dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0
    #: optimizer steps so far
    step: int = 0
    #: training samples seen so far
    samples: int = 0
    #: 3 x forward multiply-adds x samples, scoring passes included
    cumulative_macs: int = 0
    #: "warmup", "pruning" or "final": that of the epoch, set where an epoch begins
    phase: str = "final"
    #: why training ended before its last epoch, if it did
    stopped: str | None = None
    warnings: list[str] = field(default_factory=list)
    #: one entry for each time the network was rewound: epochs done by then, and to after which of them
    rewinds: list[dict[str, int]] = field(default_factory=list)
    #: the memory formats of training, each with the number of steps before it
    memory_formats: dict[int, str] = field(default_factory=dict)

    def note_format(self, name: str) -> None:
        """From this step on training runs in this memory format."""
        if name not in list(self.memory_formats.values())[-1:]:
            self.memory_formats[self.step] = name


def decay_groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """An optimizer's groups, none of them empty: tensors of 2 or more dimensions, and those without weight decay.

    Biases and norms only shift and rescale: decay makes no network simpler by them.
    """
    every = list(parameters)
    decayed, plain = [p for p in every if p.dim() > 1], [p for p in every if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


def no_bar(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Progress that shows nothing."""
    return items


class Trainer(ABC):
    """Trains the network of `parts`; hooks are called on the way.

    Attributes for listeners: `model`, `optimizer`, `loss`, `loaders`, `hooks`, `settings`, `progress`,
    `epoch` (0-based), `example_input` (one sample on the device), `memory_format`, `macs` (of one sample through
    the network as it is), `companions` (cut along with the network), `confusion` (of the last evaluation),
    `accelerator`, `batch` (inputs and targets that are trained on now; each step must set it).

    A trainer may change the network's layers for training, by `prepare_model`. Then `network()` is the plain one
    that is measured and saved, and that `finish()` leaves behind.
    """

    #: whether the network of the best epoch by validation is the one that is tested and kept, or that of the last
    keeps_best: ClassVar[bool] = True

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Raise UsageError for options (those of the constructor) that make no sense; nothing is loaded yet."""
        return

    @classmethod
    def schedule(cls, own: Schedule, **options: Any) -> Schedule:
        """When the criterion prunes under this trainer; by default when it would by itself."""
        return own

    @classmethod
    def least_share(cls, **options: Any) -> float:
        """Share of each layer's channels that stays whatever the target; by default only the last one does."""
        return 0.0

    @classmethod
    def prepare_model(cls, model: nn.Module, loaders: Loaders, **options: Any) -> nn.Module:
        """The network that is trained, before it is traced and an optimizer made; by default as it is."""
        return model

    @classmethod
    def parameters(cls, model: nn.Module, learning_rate: float, **options: Any) -> list[Any]:
        """What the optimizer is given: groups of parameters. Weight decay is for those of 2 or more dimensions."""
        return decay_groups(model.parameters())

    def __init__(self, parts: Parts, settings: Settings, **options: Any) -> None:
        self.accelerator = Accelerator(cpu=next(parts.model.parameters()).device.type == "cpu")
        self.settings, self.progress = settings, Progress()
        self.loss, self.loaders, self.hooks = parts.loss, parts.loaders, parts.hooks
        self.model: nn.Module = self.accelerator.prepare(parts.model)
        self.optimizer: Any = self.accelerator.prepare(parts.optimizer)
        self.lr_schedule = parts.lr_schedule
        self.companions: list[Companion] = []
        #: true class by predicted class, int64 (C, C), of the last evaluation; None where none has counted it
        self.confusion: Tensor | None = None
        #: the batch of the step that runs or has just ended, on the device; None before the first
        self.batch: tuple[Tensor, Tensor] | None = None
        #: shows a progress bar over an iterable: (items, title, how many)
        self.track: Track = no_bar
        self.use_memory_format(settings.memory_format)
        batch = parts.loaders.scoring_batches("random", batches=1, samples=None, batch_size=1, seed=0, step=0)
        self.example_input: Tensor = batch[0][0]
        self.macs = count_macs(self.model, self.example_input)[0]
        self.__dict__.update(options)

    @property
    def epoch(self) -> int:
        """The epoch that runs or has just ended, 0-based."""
        return self.progress.epoch

    def use_memory_format(self, memory_format: torch.memory_format) -> None:
        """Lay out 4-D parameters, and every batch from now on, in this format.

        A network with layers that must not be trained in channels_last becomes contiguous, with a warning.
        """
        layers = faulty_layers(self.model) if memory_format == torch.channels_last else []
        if layers:
            memory_format = torch.contiguous_format
            self.warn(f"{explained(layers)}: from step {self.progress.step} on the run is contiguous")
        self.memory_format = memory_format
        lay_out(self.model, memory_format, unwrapped(self.optimizer))
        self.progress.note_format(format_name(memory_format))
        for loader in (self.loaders.train, self.loaders.val, self.loaders.test):
            if loader is not None:
                loader.memory_format = memory_format

    def count_macs(self, samples: int) -> None:
        """Add a forward and a backward pass of `samples` to the cumulative multiply-adds."""
        self.progress.cumulative_macs += 3 * self.macs * samples

    def warn(self, message: str) -> None:
        """Tell the listeners; the report lists it too."""
        self.progress.warnings.append(message)
        self.hooks.warned(trainer=self, message=message)

    def network(self) -> nn.Module:
        """The network as it is measured, saved and tested: one that `load_model` rebuilds. Not to be changed."""
        return self.model

    def finish(self) -> None:
        """Training is over: from here on `model` is the plain network."""
        plain = self.network()
        if plain is not self.model:
            self.model = plain
            self.macs = count_macs(self.model, self.example_input)[0]

    def state(self) -> dict[str, float]:
        """Numbers of the trainer's own for each row of metrics.jsonl."""
        return {}

    def report(self) -> dict[str, Any]:
        """What report.json says of the trainer."""
        return {}

    @abstractmethod
    def train(self) -> None:
        """Train to the end, calling the hooks."""

    @abstractmethod
    def evaluate(self, loader: BatchLoader) -> dict[str, float]:
        """At least `acc` (share of correct samples) and `loss` (mean over samples); the model keeps its mode."""
