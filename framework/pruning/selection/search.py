"""Search for the selection of a ranking that meets a budget: all candidates are prefixes of one order."""

from bisect import bisect_left
from math import inf

from secateur.framework.pruning.selection.budgets import Budget
from secateur.framework.pruning.selection.channel_ranking import ChannelRanking
from secateur.framework.pruning.selection.ranking import Keep, Ranking
from secateur.utils.errors import UsageError

#: maximum number of corrections of a prediction by the measured share of a cut network
CORRECTIONS = 8


def nearest(ranking: Ranking, budget: Budget, goal: float) -> Keep:
    """Return the selection of a ranking whose predicted share is nearest to the goal.

    It is found by bisection, since an entry may be any number of nodes or multiply-adds: it prunes the fewest
    entries that reach the goal, or one entry (or set) less.
    """
    ranking.sort()
    ends = ranking.ends
    index = bisect_left(ends, goal, lo=1, key=lambda count: budget.predicted(ranking.first(count)))
    index = min(index, len(ends) - 1)
    candidates = [ranking.first(count) for count in (ends[index], ends[max(0, index - 1)])]
    return min(candidates, key=lambda keep: abs(budget.predicted(keep) - goal))


def to_budget(ranking: ChannelRanking, budget: Budget, sparsity: float, strict: bool = True) -> Keep:
    """Return the selection of channels that brings the pruned share of the budget nearest to `sparsity`.

    If the target is already reached, nothing is pruned. With `strict`, raises UsageError with the reason if a
    budget other than nodes cannot be met within its tolerance.
    """
    now = budget.now()
    if now >= sparsity:
        return ranking.first(0)
    if budget.exact:
        keep = _nearest(ranking, budget, sparsity)
        reached = budget.predicted(keep)
    else:
        keep, reached = _corrected(ranking, budget, sparsity, now)
    if abs(reached - sparsity) > budget.tolerance / 2 or ranking.options.round_to > 1 and budget.exact:
        goal = budget.predicted(keep) + sparsity - reached
        other = ranking.refine(keep, lambda masks: abs(budget.predicted(masks) - goal))
        choices = [(keep, reached), (other, budget.actual(other))]
        keep, reached = min(choices, key=lambda pair: abs(pair[1] - sparsity))
    if strict and abs(reached - sparsity) > budget.tolerance:
        raise UsageError(_why_not(ranking, budget, sparsity, reached))
    return keep


def check_reachable(ranking: ChannelRanking, budget: Budget, sparsity: float) -> None:
    """Raise UsageError if a budget cannot be met even by pruning all prunable channels, whatever the scores."""
    if budget.tolerance < inf:
        most = budget.actual(ranking.first(ranking.size))
        if most < sparsity - budget.tolerance:
            raise UsageError(_why_not(ranking, budget, sparsity, most))


def _nearest(ranking: ChannelRanking, budget: Budget, goal: float) -> Keep:
    return ranking.at_share(goal, budget) or nearest(ranking, budget, goal)


def _corrected(ranking: ChannelRanking, budget: Budget, sparsity: float, now: float) -> tuple[Keep, float]:
    """Search for the predicted share whose actual share is the target, by regula falsi."""
    last = ranking.first(ranking.ends[-1])
    low, high = (budget.predicted({}), now), (budget.predicted(last), budget.actual(last))
    best = min([(ranking.first(0), low[1]), (last, high[1])], key=lambda pair: abs(pair[1] - sparsity))
    if high[1] <= sparsity:
        return best
    for turn in range(CORRECTIONS):
        slope = (high[0] - low[0]) / max(1e-9, high[1] - low[1])
        goal = low[0] + slope * (sparsity - low[1]) if turn % 3 < 2 else (low[0] + high[0]) / 2
        keep = _nearest(ranking, budget, goal)
        actual = budget.actual(keep)
        best = min(best, (keep, actual), key=lambda pair: abs(pair[1] - sparsity))
        if abs(actual - sparsity) <= budget.tolerance / 4:
            break
        low, high = ((goal, actual), high) if actual < sparsity else (low, (goal, actual))
    return best


def _why_not(ranking: ChannelRanking, budget: Budget, sparsity: float, reached: float) -> str:
    options, most = ranking.options, budget.actual(ranking.first(ranking.size))
    asked = f"budget {budget.name}: asked for sparsity {sparsity:.4f}"
    if most < sparsity:
        limit = f", min_channels {options.min_channels}" if options.min_channels != 1 else ""
        limit += f", keep_share {options.keep_share:g}" if options.keep_share else ""
        return (
            f"{asked}, at most {most:.4f} can be reached: the remaining channels are protected or the last "
            f"of their group{limit}"
        )
    rounded = f" in steps of {options.round_to}" if options.round_to > 1 else ""
    return (
        f"{asked}, the nearest selection of whole channels{rounded} has {reached:.4f}, more than "
        f"{budget.tolerance} off"
    )
