"""Pruning in one call, for people with their own training script."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from framework.criterion import Batch, Criterion, LossFunction
from framework.measures import measure
from framework.plugins import build
from framework.pruning.cutting import Companion, unwrapped
from framework.pruning.masks import Masks
from framework.pruning.pruner import TOLERANCE
from framework.pruning.step import PruneEvent, PruningStep
from utils.errors import UsageError
from utils.suggest import unknown

BUDGETS = {"nodes": "channel", "weights": "weight"}


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
    seed: int = 0,
    latency: bool = False,
) -> PruneReport:
    """Prune `model` in place: cut channels (and the optimizer's state with them), or mask weights.

    `criterion` is a name or an instance; one that prunes in several steps does them all here, scoring what is
    left each time. `sparsity` is a share of the dense network: of its nodes for channel criterions, of its
    prunable weights for weight criterions. `batches` are (inputs, targets) on the model's device;
    `example_input` is by default the first of them. With an `optimizer` masks are re-applied after each of
    its steps; without one call `Masks(model).apply()` yourself, as the report's `note` says. Latency is measured
    only on request, since it takes time. A target that is out of reach is warned of. Raises UsageError and
    leaves the model alone for a sparsity outside [0, 1), an unknown criterion, and whatever the criterion or
    the network refuses (what a later step of several refuses leaves the earlier ones done).
    """
    chosen = build("criterions", criterion) if isinstance(criterion, str) else criterion
    budget = _check(chosen, sparsity, budget)
    data = list(batches)
    example = _example(example_input, data)
    step = PruningStep(
        model, chosen, example, scope=scope, protect=protect, optimizer=optimizer, companions=companions
    )
    before = measure(model, example, latency=latency)
    events = _run(step, sparsity, data, loss, seed)
    return PruneReport(
        criterion=repr(chosen),
        budget=budget,
        asked=sparsity,
        reached=_reached(step, sparsity, bool(events)),
        before=before,
        after=measure(model, example, latency=latency),
        protected={name: group.protected for name, group in step.groups.items() if group.protected},
        events=events,
        note=_attach(model, optimizer),
    )


def _example(example_input: Tensor | None, batches: Sequence[Batch]) -> Tensor:
    if example_input is None and not batches:
        raise UsageError("prune needs example_input or batches to trace the network")
    return batches[0][0] if example_input is None else example_input


def _run(
    step: PruningStep, sparsity: float, batches: Sequence[Batch], loss: LossFunction, seed: int
) -> tuple[PruneEvent, ...]:
    """All steps of the criterion, with random numbers of their own."""
    criterion = step.criterion
    criterion.seed, criterion.step = seed, 0
    criterion.start(step.model)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return tuple(step(target, batches, loss) for target in criterion.schedule.one_shot(sparsity))


def _reached(step: PruningStep, asked: float, pruned: bool) -> float:
    """The sparsity now; a target that was out of reach is warned of."""
    reached = step.sparsity()
    if pruned and step.criterion.threshold is None and abs(reached - asked) > TOLERANCE:
        name = type(step.criterion).__name__
        warnings.warn(f"{name}: asked for sparsity {asked:.4f}, reached {reached:.4f}", stacklevel=3)
    return reached


def _check(criterion: Criterion, sparsity: float, budget: str | None) -> str:
    if not isinstance(criterion, Criterion):
        raise UsageError(f"criterion is a name or an instance of a Criterion, got {criterion!r}")
    own = "nodes" if criterion.granularity == "channel" else "weights"
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity} is outside [0, 1)")
    if budget is not None and budget not in BUDGETS:
        raise UsageError(unknown("budget", budget, list(BUDGETS)))
    if budget not in (None, own):
        raise UsageError(f"{type(criterion).__name__} prunes {criterion.granularity}s: its budget is '{own}'")
    return own


def _attach(model: nn.Module, optimizer: Any) -> str:
    masks = Masks(model)
    if not masks:
        return ""
    if optimizer is None:
        return "masked, no optimizer given: call Masks(model).apply() after each of its steps"
    masks.attach(unwrapped(optimizer))
    return "masked: the masks are re-applied after each step of the optimizer"
