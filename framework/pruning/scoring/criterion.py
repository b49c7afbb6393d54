"""The base class of pruning criterions, their data request, and the checks of their scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.plugins.registry import option_names
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.schedules.base import Before, Schedule
from secateur.utils.errors import UsageError

#: The result of `Criterion.score`: name -> floating-point tensor, the lowest entries are pruned first. A weight
#: criterion returns one tensor of the parameter's shape per prunable weight, keyed by the parameter's name. A
#: channel criterion returns one tensor of shape `(channels,)` per free channel group, keyed by the group's name.
Scores = Mapping[str, Tensor]
#: One batch of data: `(inputs, targets)`, both with the samples along the first dimension.
Batch = tuple[Tensor, Tensor]
#: A loss function: `loss(outputs, targets)` returns a scalar tensor, the mean over the batch.
LossFunction = Callable[[Tensor, Tensor], Tensor]

#: smallest batch size that is split in two to save memory; the activations of smaller batches are negligible
WORTH_HALVING = 16


@dataclass(frozen=True)
class Data:
    """Describe the training data that a criterion needs to compute its scores.

    A criterion declares it as the class attribute `data`; the run draws these samples from the training set before
    each call of `Criterion.score`. For the kinds "random" and "balanced" exactly one amount must be given.

    Attributes:
        kind: "none" (default; `score` receives no batch), "random" (samples drawn at random from the training set)
            or "balanced" (the same number of samples of each class).
        batches: Number of batches of the run's batch size.
        samples: Total number of samples.
        per_class: Number of samples of each class, for the kind "balanced" only. If the smallest class has fewer
            samples, that number is used for all classes.

    Example:
        >>> from secateur import Data
        >>> Data("balanced", per_class=10)
        Data(kind='balanced', batches=None, samples=None, per_class=10)
        >>> Data().kind
        'none'
    """

    kind: str = "none"
    batches: int | None = None
    samples: int | None = None
    per_class: int | None = None


class Criterion(ABC):
    """Base class of pruning criterions: scores the weights or the channels of a network.

    The entries with the lowest scores are pruned first. A criterion works on any `torch.nn.Module`. A new one is a
    subclass in a file of its own in criterions/ that sets `granularity` and implements `score`; all other
    attributes and methods are optional.

    Args:
        **options: Options of the criterion; each becomes an attribute of the instance. A subclass lists its own as
            keyword-only arguments of its constructor, which appear in the `repr`.

    Attributes:
        name: Name of the class; set automatically.
        granularity: What is scored: "weight" (entries of weights), "channel" (channel groups) or "both" (weights
            and channels in one ranking). Required.
        scope: Which scores are ranked against each other: "global" (default; all of them), "layer" (those of one
            layer), "row" (weights of one output unit) or "isomorphic" (channels of layers of the same structure).
        schedule: Default `Schedule`: when, and in how many steps, the run prunes. `Before()` unless set.
        threshold: Fixed score threshold; scores at or below it are pruned, whatever the target sparsity. None
            (default): the target sparsity decides.
        exact: True if the score is the change of the loss itself; such scores are not averaged with those of
            earlier steps. False by default.
        uses_initial_weights: True if the scores compare the weights with those at the start of the run, so that
            they need training before. False by default.
        data: The `Data` that `score` needs. `Data("none")` by default; a constructor may set it.
        paper: Reference of the method, such as "arXiv:1810.02340".
        trainer: Name of the trainer that the criterion requires, itself or a subclass; "" (default) for any.
        recommended: Settings of a run with this criterion that the user did not give, by their names on the
            command line. A value may be a mapping from schedule ("before", "during", "after", "rounds" or
            "iterative") to value; the setting then has its default under all other schedules. The attribute is
            read without importing the file and must be a literal, such as
            `{"T": 5.0, "keep_share": {"rounds": 0.05}}`. Empty by default.
        seed: Seed of the criterion's random numbers; set by the run.
        step: Number of pruning steps so far; set by the run.
        example_input: One input sample, `(1, ...)`, for criterions without data that need its shape; set by the
            run.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur import Criterion, prunable_weights
        >>> class Size(Criterion):
        ...     granularity = "weight"
        ...
        ...     def score(self, model, batches, loss, groups=None):
        ...         return {name: weight.detach().abs() for name, weight in prunable_weights(model).items()}
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[-3.0, 2.0]]))
        >>> Size().score(model, [], nn.functional.cross_entropy)
        {'0.weight': tensor([[3., 2.]])}
    """

    name: str
    granularity: ClassVar[str]
    scope: ClassVar[str] = "global"
    schedule: Schedule = Before()
    threshold: float | None = None
    exact: ClassVar[bool] = False
    uses_initial_weights: bool = False
    data: Data = Data("none")
    paper: ClassVar[str] = ""
    trainer: ClassVar[str] = ""
    recommended: ClassVar[Mapping[str, Any]] = {}
    seed: int = 0
    step: int = 0
    example_input: Tensor | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.name = cls.__name__

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    def __repr__(self) -> str:
        names = [name for name in option_names(type(self)) if hasattr(self, name)]
        return f"{self.name}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @abstractmethod
    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Compute the scores of all prunable weights or of all channels.

        The method must leave the model unchanged: weights, buffers, training mode and gradients (use
        `with scoring(model):`), and torch's global settings.

        Args:
            model: The network to score.
            batches: The data requested by `data`, iterated over once; empty for `Data("none")`.
            loss: The loss function.
            groups: The channel groups to score; None for weight criterions. Channel criterions trace the groups
                from the first batch if it is None, see `with_groups`.

        Returns:
            One tensor of the parameter's shape per prunable weight, by the parameter's name ("weight"); one tensor
            of shape `(channels,)` per free group, by the group's name ("channel"); or the two in one mapping
            ("both"). The lowest scores are pruned first; +inf is never pruned.

        Raises:
            UsageError: If the model cannot be scored, for example because the criterion needs data and gets no
                batch.
        """

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Compute the scores of the network's inputs, for channel criterions with `rank_inputs`.

        Optional. Implementations apply the measure of `score` to the columns of the layer's weight instead of its
        rows, see `input_columns`, and leave the model unchanged.

        Args:
            model: The network to score.
            batches: The data requested by `data`.
            loss: The loss function.
            layer: Name of the layer that reads the inputs.

        Returns:
            One score per input of the layer, `(inputs,)`; higher scores are kept longer.

        Raises:
            UsageError: If the criterion does not implement the method.
        """
        raise UsageError(f"{self.name} cannot rank the network's inputs (it lacks input_scores)")

    def check(self, model: nn.Module) -> None:  # noqa: B027
        """Validate the network; called before the run writes any file.

        Args:
            model: The network to prune.

        Raises:
            UsageError: If the network cannot be scored. The default implementation accepts every network.
        """

    def cost(self, samples: int) -> float:
        """Return the cost of scoring with `samples` samples.

        Args:
            samples: Number of samples that `score` receives.

        Returns:
            The cost in training passes (forward and backward) of one sample; `samples` by default.
        """
        return samples

    def start(self, model: nn.Module) -> None:  # noqa: B027
        """Record the initial state of the model; called once at the start of a run, before any pruning.

        Args:
            model: The network to prune; it must not be changed.
        """

    def observe(self, model: nn.Module, loss: Tensor) -> None:  # noqa: B027
        """Update tracked statistics; called after each training batch.

        Args:
            model: The network in training; it must not be changed.
            loss: The loss of the batch, a scalar.
        """

    def generator(self) -> torch.Generator:
        """Return a CPU random generator that depends on `seed` and `step` only."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % 2**63)


def check_scores(
    scores: Scores, model: nn.Module, groups: Groups | None, criterion: Criterion
) -> dict[str, Tensor]:
    """Return the scores as float32; raise UsageError for a wrong key, type or shape and for NaN."""
    checked = as_scores(scores, model, groups, criterion)
    for name, score in checked.items():
        if score.isnan().any():
            raise UsageError(f"{criterion.name}.score: '{name}' contains NaN")
    return checked


def as_scores(scores: Scores, model: nn.Module, groups: Groups | None, criterion: Criterion) -> dict[str, Tensor]:
    """Return the scores as float32 on the model's device; check keys, types and shapes, but not the values.

    Raises UsageError with the wrong key, type or shape.
    """
    weights = prunable_weights(model)
    expected: dict[str, tuple[int, ...]] = {}
    if criterion.granularity in ("weight", "both"):
        expected |= {name: tuple(weight.shape) for name, weight in weights.items()}
    if criterion.granularity in ("channel", "both"):
        expected |= {name: (group.channels,) for name, group in free_groups(groups or {}).items()}
    who = f"{criterion.name}.score"
    if not isinstance(scores, Mapping):
        raise UsageError(f"{who} returned {type(scores).__name__}, expected a mapping from name to tensor")
    _check_keys(who, scores, list(expected))
    default = next(iter(weights.values()), torch.empty(0))
    return {
        name: float_scores(f"{who}: '{name}'", scores[name], shape).to(weights.get(name, default).device)
        for name, shape in expected.items()
    }


def float_scores(where: str, scores: Any, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of scores as detached float32; raise UsageError, beginning with `where`, otherwise."""
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
        raise UsageError(f"{where} is on the meta device and has no values")
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
