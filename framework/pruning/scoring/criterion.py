"""The contract of a pruning criterion, and the passes over data that most criterions share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.schedules.base import Before, Schedule
from secateur.utils.errors import UsageError

if TYPE_CHECKING:
    pass

#: name -> float32 tensor, higher = keep: parameter names for weights, group names for channels
Scores = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]

#: the activations of fewer samples are not what fills memory
WORTH_HALVING = 16


@dataclass(frozen=True)
class Data:
    """What a criterion wants to see: "none", "random" batches of the training set, or "balanced" classes.

    Give one of `batches` (of the run's batch size), `samples` (in all) and, for "balanced", `per_class`: as many
    of each class, or as many as the smallest class has.
    """

    kind: str = "none"
    batches: int | None = None
    samples: int | None = None
    per_class: int | None = None


class Criterion(ABC):
    """Scores weights or channels; what is lowest is pruned first. Works on any `torch.nn.Module`.

    A new criterion is one file in criterions/: the class attributes below, and `score`.
    """

    #: "weight", "channel", or "both" (one ranking over both)
    granularity: ClassVar[str]
    #: "global", "layer" or "row": over what the scores are ranked
    scope: ClassVar[str] = "global"
    #: when it prunes unless told otherwise
    schedule: ClassVar[Schedule] = Before()
    #: a fixed score threshold instead of a target share
    threshold: float | None = None
    #: whether its scores are the change of the loss itself: those of earlier steps are not averaged in then
    exact: ClassVar[bool] = False
    #: what it wants to see
    data: ClassVar[Data] = Data("none")
    #: "arXiv:1810.02340"
    paper: ClassVar[str] = ""
    #: the trainer that a run with it needs, by name (or one derived from it); "" where any will do
    trainer: ClassVar[str] = ""
    #: seed and step of the criterion's own random numbers; set by the run
    seed: int = 0
    step: int = 0
    #: one sample of the input, for criterions without data that need its shape; set by the framework
    example_input: Tensor | None = None

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)
        self._options = options

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._options.items())})"

    @abstractmethod
    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Score every prunable weight (its parameter's shape) or channel (`(channels,)` for each free group).

        Pure: weights, buffers, mode and gradients are afterwards as before. `batches` is passed over once;
        `groups` are the groups that will be cut, None means traced from the first inputs.
        """

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Optional, for channel criterions under `--outer_layer_pruning`: score the inputs of the first layer.

        The measure of the channels, over the columns of the weight of `layer` (a module's name) instead of rows:
        `(inputs,)`, higher = keep. Pure like `score`. `secateur.input_columns` has the columns.
        """
        raise UsageError(f"{type(self).__name__} cannot rank the network's inputs (it lacks input_scores)")

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Raise UsageError for a network that cannot be scored; called before anything is written."""

    def cost(self, samples: int) -> float:
        """What scoring with so many samples costs, in training passes (forward and backward) of one sample."""
        return samples

    def start(self, model: nn.Module) -> None:  # noqa: B027
        """Remember what is needed of the model before anything happens; never changes the model."""

    def observe(self, model: nn.Module, loss: Tensor) -> None:  # noqa: B027
        """Called after each training batch, for criterions that track their scores."""

    def generator(self) -> torch.Generator:
        """Random numbers that depend on the run's seed and the pruning step alone."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)


def check_scores(
    scores: Scores, model: nn.Module, groups: Groups | None, criterion: Criterion
) -> dict[str, Tensor]:
    """The scores as float32, or a UsageError that names the wrong key, type, shape or NaN."""
    checked = as_scores(scores, model, groups, criterion)
    for name, score in checked.items():
        if score.isnan().any():
            raise UsageError(f"{type(criterion).__name__}.score: '{name}' has NaN")
    return checked


def as_scores(scores: Scores, model: nn.Module, groups: Groups | None, criterion: Criterion) -> dict[str, Tensor]:
    """The scores as float32 on the model's device; their keys, types and shapes are checked, not their values.

    Raises UsageError that names the wrong key, type or shape.
    """
    weights = prunable_weights(model)
    expected: dict[str, tuple[int, ...]] = {}
    if criterion.granularity in ("weight", "both"):
        expected |= {name: tuple(weight.shape) for name, weight in weights.items()}
    if criterion.granularity in ("channel", "both"):
        expected |= {name: (group.channels,) for name, group in free_groups(groups or {}).items()}
    who = f"{type(criterion).__name__}.score"
    if not isinstance(scores, Mapping):
        raise UsageError(f"{who} returned {type(scores).__name__}, expected a mapping from name to tensor")
    _check_keys(who, scores, list(expected))
    default = next(iter(weights.values()), torch.empty(0))
    return {
        name: float_scores(f"{who}: '{name}'", scores[name], shape).to(weights.get(name, default).device)
        for name, shape in expected.items()
    }


def float_scores(where: str, scores: Any, shape: tuple[int, ...]) -> Tensor:
    """A tensor of scores as float32 without a graph; UsageError, which begins with `where`, for anything else."""
    if not isinstance(scores, Tensor):
        raise UsageError(f"{where} is {type(scores).__name__}, expected a tensor")
    if tuple(scores.shape) != shape:
        raise UsageError(f"{where} has shape {tuple(scores.shape)}, expected {shape}")
    if scores.layout is not torch.strided or scores.is_quantized:
        kind = "quantized" if scores.is_quantized else str(scores.layout).removeprefix("torch.")
        raise UsageError(f"{where} is a tensor of kind {kind}, expected a dense one of a floating-point type")
    if not scores.is_floating_point():
        dtype = str(scores.dtype).removeprefix("torch.")
        raise UsageError(f"{where} is {dtype}, expected a floating-point type such as float32")
    if scores.is_meta:
        raise UsageError(f"{where} is on the meta device, it has no values")
    return scores.detach().float()


def _check_keys(who: str, scores: Scores, expected: Sequence[str]) -> None:
    for key in scores:
        if not isinstance(key, str):
            raise UsageError(f"{who} has a key of type {type(key).__name__}, expected names (str)")
    missing = [name for name in expected if name not in scores]
    if missing:
        raise UsageError(f"{who} lacks {', '.join(repr(name) for name in missing)}")
    extra = [name for name in scores if name not in set(expected)]
    if extra:
        raise UsageError(f"{who} has unknown {', '.join(repr(name) for name in extra)}")
