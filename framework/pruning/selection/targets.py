"""From a sparsity of the dense network to keep masks: which entries, and how many, meet the target."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import dense_weights
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.selection.budgets import Budget, Nodes
from secateur.framework.pruning.selection.ranking import Limits, Ranking
from secateur.framework.pruning.selection.ranking_in_sets import Chunks
from secateur.framework.pruning.selection.select import Keep, select
from secateur.utils.errors import UsageError


def keep_weights(
    model: nn.Module, scores: Mapping[str, Tensor], sparsity: float, scope: str, spared: set[str]
) -> Keep:
    """Masks after which `sparsity` of the dense network's prunable weights is gone.

    `spared` weights are never pruned; they count in the total all the same.
    """
    weights, masks, gone = prunable_weights(model), Masks(model), cut_weights(model)
    ranked = {
        name: torch.full_like(score, torch.inf) if name in spared else score for name, score in scores.items()
    }
    current = {name: masks[name] for name in weights if name in masks}
    return select(ranked, sparsity, scope=scope, current=current, gone={k: v for k, v in gone.items() if v})


def cut_weights(model: nn.Module) -> dict[str, int]:
    """How many entries of each prunable weight were cut."""
    dense = dense_weights(model)
    return {name: dense[name] - weight.numel() for name, weight in prunable_weights(model).items()}


def count_weights(model: nn.Module) -> tuple[int, int]:
    """Prunable weights that are cut or masked, and all of the dense network."""
    weights, masks = prunable_weights(model), Masks(model)
    masked = sum(int((masks[name] == 0).sum()) for name in weights if name in masks)
    return sum(cut_weights(model).values()) + masked, sum(dense_weights(model).values())


def keep_channels(
    model: nn.Module,
    groups: Groups,
    scores: Mapping[str, Tensor],
    sparsity: float,
    limits: Limits,
    budget: Budget,
    strict: bool = True,
) -> Keep:
    """Channels to keep so that the share of the budget that is gone comes as near to `sparsity` as it can.

    How many channels go is found by bisection, since one may be several nodes or many multiply-adds; on plain
    chains and for nodes it is that share of the channels. If more is gone already, nothing happens. With `strict`
    a budget other than nodes that cannot be met within its tolerance is a UsageError that says why.
    """
    if isinstance(budget, Nodes) and not any(budget.per_channel.values()):
        raise UsageError("no free channel is a node, an output of a convolution or linear layer: try budget macs")
    return keep_ranked(Ranking(model, groups, scores, limits), sparsity, limits, budget, strict)


def keep_ranked(
    ranking: Ranking | Chunks, sparsity: float, limits: Limits, budget: Budget, strict: bool = True
) -> Keep:
    """The same of channels whose order is known."""
    now = budget.now()
    if now >= sparsity:
        return ranking.nothing()
    if budget.exact:
        keep = _nearest(ranking, budget, sparsity)
        if limits.round_to > 1 or budget.tolerance is not None and _off(budget, keep, sparsity):
            keep = ranking.refine(keep, lambda one: abs(budget.predicted(one) - sparsity))
        reached = budget.predicted(keep)
    else:
        keep, reached = _corrected(ranking, budget, sparsity, now)
    if strict and budget.tolerance is not None and abs(reached - sparsity) > budget.tolerance:
        raise UsageError(_why_not(ranking, budget, sparsity, reached, limits))
    return keep


def _off(budget: Budget, keep: Keep, sparsity: float) -> bool:
    return abs(budget.predicted(keep) - sparsity) > (budget.tolerance or 0) / 2


def reachable(model: nn.Module, groups: Groups, sparsity: float, limits: Limits, budget: Budget) -> None:
    """UsageError if a budget cannot be met even with all that may go gone, whatever the scores will be."""
    if budget.tolerance is None:
        return
    ranking = Ranking(model, groups, {name: torch.zeros(group.channels) for name, group in groups.items()}, limits)
    most = budget.actual(ranking.keep(ranking.steps))
    if most < sparsity - budget.tolerance:
        raise UsageError(_why_not(ranking, budget, sparsity, most, limits))


def _nearest(ranking: Ranking | Chunks, budget: Budget, goal: float) -> Keep:
    """The step of the ranking whose predicted share is nearest to the goal."""
    as_asked = ranking.as_asked(goal, budget)
    if as_asked is not None:
        return as_asked
    step = _bisect(ranking, budget, goal)
    return min(
        (ranking.keep(one) for one in (step, step - 1)), key=lambda keep: abs(budget.predicted(keep) - goal)
    )


def _bisect(ranking: Ranking | Chunks, budget: Budget, goal: float) -> int:
    """The least step at which the predicted share is reached; the last one where it never is."""
    low, high = 0, ranking.steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.predicted(ranking.keep(middle)) >= goal else (middle, high)
    return high


#: how often a prediction is corrected by what a cut network really has
CORRECTIONS = 8


def _corrected(ranking: Ranking | Chunks, budget: Budget, sparsity: float, now: float) -> tuple[Keep, float]:
    """Aim at what has to be predicted so that the actual share is the one asked for: regula falsi."""
    last = ranking.keep(ranking.steps)
    low, high = (budget.predicted({}), now), (budget.predicted(last), budget.actual(last))
    best = min([(ranking.nothing(), low[1]), (last, high[1])], key=lambda one: abs(one[1] - sparsity))
    if high[1] <= sparsity:
        return best
    for turn in range(CORRECTIONS):
        slope = (high[0] - low[0]) / max(1e-9, high[1] - low[1])
        goal = low[0] + slope * (sparsity - low[1]) if turn % 3 < 2 else (low[0] + high[0]) / 2
        keep = _nearest(ranking, budget, goal)
        actual = budget.actual(keep)
        best = min(best, (keep, actual), key=lambda one: abs(one[1] - sparsity))
        if abs(actual - sparsity) <= (budget.tolerance or 0) / 4:
            break
        low, high = ((goal, actual), high) if actual < sparsity else (low, (goal, actual))
    return _refined(ranking, budget, sparsity, *best)


def _refined(
    ranking: Ranking | Chunks, budget: Budget, sparsity: float, keep: Keep, actual: float
) -> tuple[Keep, float]:
    """Where the next whole channel of the ranking is too far off, single groups may still come nearer."""
    if budget.tolerance is None or abs(actual - sparsity) <= budget.tolerance / 2:
        return keep, actual
    goal = budget.predicted(keep) + sparsity - actual
    other = ranking.refine(keep, lambda one: abs(budget.predicted(one) - goal))
    return min((keep, actual), (other, budget.actual(other)), key=lambda one: abs(one[1] - sparsity))


def _why_not(ranking: Ranking | Chunks, budget: Budget, sparsity: float, reached: float, limits: Limits) -> str:
    most = budget.actual(ranking.keep(ranking.steps))
    asked = f"budget {budget.name}: asked for sparsity {sparsity:.4f}"
    if most < sparsity:
        left = (
            f"the last {limits.min_channels} of a group" if limits.min_channels != 1 else "the last of its group"
        )
        left = (
            f"{left}, of which the share {limits.keep_share:g} stays (keep_share)" if limits.keep_share else left
        )
        return f"{asked}, at most {most:.4f} can go: what is left is protected or {left}"
    rounded = f" in steps of {limits.round_to}" if limits.round_to > 1 else ""
    return (
        f"{asked}, the nearest found in whole channels{rounded} is {reached:.4f}, more than {budget.tolerance} off"
    )
