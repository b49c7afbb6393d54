"""Pruning in one call, for people with their own training script."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.convolution_faults import explained, faulty_layers, in_channels_last
from secateur.framework.network.layers import check_network
from secateur.framework.network.lineage import Companion
from secateur.framework.network.masks import Masks
from secateur.framework.network.memory_format import fast_multiple
from secateur.framework.network.ordinary_tensors import check_dense, ordinary, ordinary_mode
from secateur.framework.network.preserve import random_numbers_as_before
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.groups import check_example
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction
from secateur.framework.pruning.selection.budgets import BUDGETS
from secateur.framework.pruning.steps.step import PruningStep, nothing_below
from secateur.framework.reporting.measure import measure
from secateur.framework.training.events import PruneEvent
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped
from secateur.utils.subsampled import subsample
from secateur.utils.suggest import unknown


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did: sparsity asked and reached (of the budget's kind), `measure` before and after, and
    which groups were protected, with the reason."""

    criterion: str
    budget: str
    asked: float
    reached: float
    before: dict[str, Any]
    after: dict[str, Any]
    protected: dict[str, str]
    events: tuple[PruneEvent, ...]
    note: str = ""


@ordinary_mode()
def prune(
    model: nn.Module,
    criterion: str | Criterion = "SNAP",
    sparsity: float = 0.5,
    *,
    batches: Iterable[Batch] = (),
    example_input: Tensor | None = None,
    loss: LossFunction = nn.functional.cross_entropy,
    optimizer: Any = None,
    budget: str | None = None,
    scope: str | None = None,
    protect: Sequence[str] = (),
    companions: Sequence[Companion] = (),
    min_channels: int = 1,
    keep_share: float = 0.0,
    round_to: int | str = 1,
    attention: str = "dims",
    inexact: bool = False,
    fold: bool = False,
    seed: int = 0,
    latency: bool = False,
    safe_strides: bool = False,
) -> PruneReport:
    """Prune `model` in place: cut channels (and the optimizer's state with them), or mask weights.

    `criterion` is a name or an instance; one that prunes in several steps does them all here, scoring what is
    left each time. `sparsity` is the share of the dense network that goes: for weight criterions of its prunable
    weights, for channel criterions of the `budget`: "nodes" (the default), "weights", "params", "macs" or
    "latency" (of a forward pass of `example_input` as given, measured). Nodes come as near as the ranking
    does; the others are met within 0.01 (latency 0.05), or a UsageError says why not. A sparsity of 0 prunes
    nothing; any other has no effect on a criterion with a fixed threshold, as the report's `note` says.

    For channel criterions: `scope` "global" ranks all channels together, "layer" takes the same share of each
    group, "isomorphic" of each set of groups that are built alike. `min_channels` stay in every group, and
    the share `keep_share` of its channels in the dense network; widths of layers left are multiples of
    `round_to` ("auto" measures which multiple is fast here).
    `attention` and `inexact` see `channel_groups`, `fold` see `cut`.

    `batches` are (inputs, targets) on the model's device; `example_input` is by default the first of them. With an
    `optimizer` masks are re-applied after each of its steps; without one call `Masks(model).apply()` yourself, as
    the report's `note` says. The report has latency only on request, since it takes time. A target that is out of
    reach is warned of.

    On the CPU, PyTorch may corrupt memory in the backward pass of a strided 1x1 convolution with 2 to 7 input
    channels in channels_last (docs/known_upstream_faults.md), and pruning makes such layers of wider ones. If the
    pruned network has one and is in channels_last, a warning says so: train it in contiguous format, or pass
    `safe_strides`, which converts strided 1x1 `nn.Conv2d` layers to their subclass `SubsampledConv2d`, with the
    same parameters and results.

    Raises UsageError and leaves the model alone for a sparsity outside [0, 1), an unknown
    criterion, and whatever the criterion or the network refuses (what a later step of several refuses leaves the
    earlier ones done).
    """
    check_network(model)
    _check_types(sparsity, budget, scope, min_channels, keep_share, seed)
    chosen = build("criterions", criterion) if isinstance(criterion, str) else criterion
    budget = _check(chosen, sparsity, budget)
    data = _pairs(batches)
    if not callable(loss):
        raise UsageError(f"loss is a function of outputs and targets, got {loss!r}")
    example = _example(example_input, data)
    step = PruningStep(
        model, chosen, example, scope=scope, protect=protect, optimizer=optimizer, companions=companions,
        budget=budget, min_channels=min_channels, keep_share=keep_share, round_to=_multiple(round_to, example),
        attention=attention, inexact=inexact, fold=fold,
    )  # fmt: skip
    before = measure(model, example, latency=latency)
    events = _run(step, sparsity, data, loss, seed)
    reached = _reached(step, sparsity, events)
    if safe_strides:
        subsample(model)
    _warn_of_faults(model, example)
    return PruneReport(
        criterion=repr(chosen),
        budget=budget,
        asked=sparsity,
        reached=reached,
        before=before,
        after=measure(model, example, latency=latency),
        protected={name: group.protected for name, group in step.groups.items() if group.protected},
        events=events,
        note="; ".join(filter(None, (_of_threshold(chosen, sparsity, reached), _attach(model, optimizer)))),
    )


def _pairs(batches: Iterable[Batch]) -> list[Batch]:
    """The batches as they are, once it is known that each has inputs and targets."""
    if not isinstance(batches, Iterable) or isinstance(batches, (Tensor, str, Mapping)):
        raise UsageError(f"batches are pairs (inputs, targets), got {type(batches).__name__}")
    data = list(batches)
    for number, batch in enumerate(data):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise UsageError(f"batches are pairs (inputs, targets), batch {number} is {type(batch).__name__}")
        for part, values in zip(("inputs", "targets"), batch, strict=True):
            if isinstance(values, Tensor):
                check_dense(f"{part} of batch {number}", values)
        data[number] = (ordinary(batch[0]), ordinary(batch[1]))
    return data


def _example(example_input: Tensor | None, batches: Sequence[Batch]) -> Tensor:
    if example_input is None and not batches:
        raise UsageError("prune needs example_input or batches to trace the network")
    example = batches[0][0] if example_input is None else example_input
    check_example(example)
    return ordinary(example)


def _run(
    step: PruningStep, sparsity: float, batches: Sequence[Batch], loss: LossFunction, seed: int
) -> tuple[PruneEvent, ...]:
    """All steps of the criterion, with random numbers of their own."""
    criterion = step.criterion
    criterion.seed, criterion.step = seed, 0
    with held_to_contract(criterion, "start", step.model):
        criterion.start(step.model)
    with random_numbers_as_before():
        torch.manual_seed(seed)
        targets = criterion.schedule.one_shot(sparsity)
        if len(targets) > 1:  # a single one is refused before anything is cut
            step.check_reachable(targets[-1])
        return tuple(step(target, batches, loss, strict=target == targets[-1]) for target in targets)


def _reached(step: PruningStep, asked: float, events: Sequence[PruneEvent]) -> float:
    """The sparsity now; a target that was out of reach is warned of, and a threshold below all scores."""
    reached = step.sparsity()
    threshold = step.criterion.threshold
    if events and asked > 0 and threshold is not None and not any(event.removed for event in events):
        warnings.warn(nothing_below(step.criterion), stacklevel=4)
    if events and (threshold is None or asked == 0) and abs(reached - asked) > step.tolerance:
        name = type(step.criterion).__name__
        warnings.warn(f"{name}: asked for sparsity {asked:.4f}, reached {reached:.4f}", stacklevel=4)
    return reached


def _of_threshold(criterion: Criterion, sparsity: float, reached: float) -> str:
    if criterion.threshold is None:
        return ""
    rule = f"{type(criterion).__name__} prunes scores up to its threshold {criterion.threshold:g}"
    if sparsity == 0:
        return f"{rule}, but nothing at sparsity 0"
    return f"{rule}, whatever the sparsity: asked for {sparsity:g}, reached {reached:.4f}"


def _warn_of_faults(model: nn.Module, example: Tensor) -> None:
    layers = faulty_layers(model)
    if layers and in_channels_last([example, *model.parameters()]):
        warnings.warn(f"{explained(layers)}: use contiguous format or safe_strides", stacklevel=3)


def _check(criterion: Criterion, sparsity: float, budget: str | None) -> str:
    if not isinstance(criterion, Criterion):
        raise UsageError(f"criterion is a name or an instance of a Criterion, got {criterion!r}")
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity} is outside [0, 1)")
    if budget is not None and budget not in BUDGETS:
        raise UsageError(unknown("budget", budget, BUDGETS))
    if criterion.granularity == "channel":
        return budget or "nodes"
    if budget not in (None, "weights"):
        raise UsageError(f"{type(criterion).__name__} prunes {criterion.granularity}s: its budget is 'weights'")
    return "weights"


def _check_types(sparsity: Any, budget: Any, scope: Any, min_channels: Any, keep_share: Any, seed: Any) -> None:
    numbers = {"sparsity": sparsity, "min_channels": min_channels, "keep_share": keep_share, "seed": seed}
    for name, value in numbers.items():
        kinds = (int, float) if name in ("sparsity", "keep_share") else (int,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UsageError(f"{name} is a number, got {value!r}")
    for name, value in (("budget", budget), ("scope", scope)):
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{name} is a word, got {value!r}")


def _multiple(round_to: int | str, example: Tensor) -> int:
    if round_to == "auto":
        return fast_multiple(example.device)
    if isinstance(round_to, int) and not isinstance(round_to, bool):
        return round_to
    raise UsageError(f"round_to is a number or 'auto', got {round_to!r}")


def _attach(model: nn.Module, optimizer: Any) -> str:
    masks = Masks(model)
    if not masks:
        return ""
    if optimizer is None:
        return "masked, no optimizer given: call Masks(model).apply() after each of its steps"
    masks.attach(unwrapped(optimizer))
    return "masked: the masks are re-applied after each step of the optimizer"
