"""Selection of the weights or channels that meet a target sparsity of the dense network."""

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
    """Return the masks that prune the share `sparsity` of the dense network's prunable weights.

    `spared` weights are never pruned, but are included in the total.
    """
    weights, masks, gone = prunable_weights(model), Masks(model), cut_weights(model)
    ranked = {
        name: torch.full_like(score, torch.inf) if name in spared else score for name, score in scores.items()
    }
    current = {name: masks[name] for name in weights if name in masks}
    return select(ranked, sparsity, scope=scope, current=current, gone={k: v for k, v in gone.items() if v})


def cut_weights(model: nn.Module) -> dict[str, int]:
    """Return the number of entries of each prunable weight that were cut."""
    dense = dense_weights(model)
    return {name: dense[name] - weight.numel() for name, weight in prunable_weights(model).items()}


def count_weights(model: nn.Module) -> tuple[int, int]:
    """Return the number of prunable weights that are cut or masked, and that of the dense network."""
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
    """Return the masks of channels whose removal brings the pruned share of the budget nearest to `sparsity`.

    The number of channels is found by bisection, since one channel may be several nodes or many multiply-adds; for
    nodes of a plain chain it is that share of the channels. If the target is already reached, nothing is pruned.
    With `strict`, raises UsageError with the reason if a budget other than nodes cannot be met within its
    tolerance.
    """
    if isinstance(budget, Nodes) and not any(budget.per_channel.values()):
        raise UsageError(
            "no prunable channel is a node, an output of a convolution or linear layer: use budget macs"
        )
    return keep_ranked(Ranking(model, groups, scores, limits), sparsity, limits, budget, strict)


def keep_ranked(
    ranking: Ranking | Chunks, sparsity: float, limits: Limits, budget: Budget, strict: bool = True
) -> Keep:
    """Return the masks of a ranking that bring the pruned share of the budget nearest to `sparsity`."""
    now = budget.now()
    if now >= sparsity:
        return ranking.nothing()
    if budget.exact:
        keep = _nearest(ranking, budget, sparsity)
        if limits.round_to > 1 or budget.tolerance is not None and _off(budget, keep, sparsity):
            keep = ranking.refine(keep, lambda other: abs(budget.predicted(other) - sparsity))
        reached = budget.predicted(keep)
    else:
        keep, reached = _corrected(ranking, budget, sparsity, now)
    if strict and budget.tolerance is not None and abs(reached - sparsity) > budget.tolerance:
        raise UsageError(_why_not(ranking, budget, sparsity, reached, limits))
    return keep


def _off(budget: Budget, keep: Keep, sparsity: float) -> bool:
    return abs(budget.predicted(keep) - sparsity) > (budget.tolerance or 0) / 2


def reachable(model: nn.Module, groups: Groups, sparsity: float, limits: Limits, budget: Budget) -> None:
    """Raise UsageError if a budget cannot be met even by pruning all prunable channels, whatever the scores."""
    if budget.tolerance is None:
        return
    ranking = Ranking(model, groups, {name: torch.zeros(group.channels) for name, group in groups.items()}, limits)
    most = budget.actual(ranking.keep(ranking.steps))
    if most < sparsity - budget.tolerance:
        raise UsageError(_why_not(ranking, budget, sparsity, most, limits))


def _nearest(ranking: Ranking | Chunks, budget: Budget, goal: float) -> Keep:
    """Return the selection of the ranking whose predicted share is nearest to the goal."""
    as_asked = ranking.as_asked(goal, budget)
    if as_asked is not None:
        return as_asked
    step = _bisect(ranking, budget, goal)
    return min(
        (ranking.keep(index) for index in (step, step - 1)), key=lambda keep: abs(budget.predicted(keep) - goal)
    )


def _bisect(ranking: Ranking | Chunks, budget: Budget, goal: float) -> int:
    """Return the first step that reaches the predicted share; the last one if none does."""
    low, high = 0, ranking.steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.predicted(ranking.keep(middle)) >= goal else (middle, high)
    return high


#: maximum number of corrections of a prediction by the measured share of a cut network
CORRECTIONS = 8


def _corrected(ranking: Ranking | Chunks, budget: Budget, sparsity: float, now: float) -> tuple[Keep, float]:
    """Search for the predicted share whose actual share is the target, by regula falsi."""
    last = ranking.keep(ranking.steps)
    low, high = (budget.predicted({}), now), (budget.predicted(last), budget.actual(last))
    best = min([(ranking.nothing(), low[1]), (last, high[1])], key=lambda pair: abs(pair[1] - sparsity))
    if high[1] <= sparsity:
        return best
    for turn in range(CORRECTIONS):
        slope = (high[0] - low[0]) / max(1e-9, high[1] - low[1])
        goal = low[0] + slope * (sparsity - low[1]) if turn % 3 < 2 else (low[0] + high[0]) / 2
        keep = _nearest(ranking, budget, goal)
        actual = budget.actual(keep)
        best = min(best, (keep, actual), key=lambda pair: abs(pair[1] - sparsity))
        if abs(actual - sparsity) <= (budget.tolerance or 0) / 4:
            break
        low, high = ((goal, actual), high) if actual < sparsity else (low, (goal, actual))
    return _refined(ranking, budget, sparsity, *best)


def _refined(
    ranking: Ranking | Chunks, budget: Budget, sparsity: float, keep: Keep, actual: float
) -> tuple[Keep, float]:
    """Refine single groups if the nearest selection of the ranking is too far from the target."""
    if budget.tolerance is None or abs(actual - sparsity) <= budget.tolerance / 2:
        return keep, actual
    goal = budget.predicted(keep) + sparsity - actual
    other = ranking.refine(keep, lambda masks: abs(budget.predicted(masks) - goal))
    return min((keep, actual), (other, budget.actual(other)), key=lambda pair: abs(pair[1] - sparsity))


def _why_not(ranking: Ranking | Chunks, budget: Budget, sparsity: float, reached: float, limits: Limits) -> str:
    most = budget.actual(ranking.keep(ranking.steps))
    asked = f"budget {budget.name}: asked for sparsity {sparsity:.4f}"
    if most < sparsity:
        limit = f", min_channels {limits.min_channels}" if limits.min_channels != 1 else ""
        limit += f", keep_share {limits.keep_share:g}" if limits.keep_share else ""
        return (
            f"{asked}, at most {most:.4f} can be reached: the remaining channels are protected or the last "
            f"of their group{limit}"
        )
    rounded = f" in steps of {limits.round_to}" if limits.round_to > 1 else ""
    return (
        f"{asked}, the nearest selection of whole channels{rounded} has {reached:.4f}, more than "
        f"{budget.tolerance} off"
    )
