"""Selection of the entries with the lowest scores: exact counts, stable ties, floors and scopes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.framework.pruning.selection.ranking import Keep, Ranking
from secateur.utils.errors import UsageError
from secateur.utils.limits import number, whole
from secateur.utils.suggest import unknown

SCOPES = ("global", "layer", "row")


def select(
    scores: Mapping[str, Tensor],
    sparsity: float,
    *,
    scope: str = "global",
    floor: int | Mapping[str, int] | None = None,
    current: Mapping[str, Tensor] | None = None,
    gone: Mapping[str, int] | None = None,
) -> Keep:
    """Select the entries to keep: prune those with the lowest scores.

    With n = entries present + entries already cut (`gone`), exactly `round(sparsity * n)` entries are pruned
    afterwards, counting those already masked or cut. If more are pruned already, the masks are unchanged. Among
    equal scores the first entry is pruned first, in mapping order and then in flat order. Entries with score +inf
    are never pruned.

    Args:
        scores: Score tensors by name, higher = keep: of any shape for weights, 1-D for channels.
        sparsity: Target share of pruned entries, in [0, 1].
        scope: Which entries are ranked against each other, and to which the sparsity applies: "global" (default;
            all entries), "layer" (those of one tensor) or "row" (those of one index of the first dimension).
        floor: Minimum number of entries to keep in each tensor, or in each row for "row": one number for all, or
            numbers by name. The next-lowest entries are pruned in place of those held by the floor. By default 1
            for 1-D tensors and 0 for others.
        current: Present masks by name, in the shapes of the scores; entries that are 0 or False are already pruned
            and stay so. Names may be missing; None (default) for no masks.
        gone: Number of entries of each tensor that were already cut, by name; not with "row". None (default): 0.

    Returns:
        The keep masks by name, in the shapes of the scores. `short` is the number of entries that could not be
        pruned because of floors and scores of +inf.

    Raises:
        UsageError: If a score is NaN, the sparsity is not a number in [0, 1], the scope is unknown, a mask has
            another shape than its scores, a name has no scores, a count is not an integer of at least 0, or `gone`
            is combined with "row".

    Example:
        >>> import torch
        >>> from secateur import select
        >>> scores = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([0.5, 4.0])}
        >>> select(scores, 0.4)
        {'a': tensor([ True, False,  True]), 'b': tensor([False,  True])}
        >>> select(scores, 0.4, scope="layer").removed
        2
    """
    _check(scores, sparsity, scope, current, gone, floor)
    keep = Keep()
    if scope == "row":
        if any((gone or {}).values()):
            raise UsageError("scope 'row' cannot count entries that were already cut: use 'layer' or 'global'")
        for name, score in scores.items():
            mask, least = (current or {}).get(name), _floor_of(name, score, floor)
            keep[name], short = _select_in_rows(score, sparsity, least, mask)
            keep.short += short
        return keep
    for names in [list(scores)] if scope == "global" else [[name] for name in scores]:
        part = {name: scores[name] for name in names}
        ranking = Ranking(part, {name: _floor_of(name, score, floor) for name, score in part.items()}, current)
        cut = sum((gone or {}).get(name, 0) for name in names)
        size = sum(score.numel() for score in part.values()) + cut
        wanted = round(sparsity * size) - ranking.pruned - cut
        keep.update(ranking.first(wanted))
        keep.short += max(0, wanted - ranking.size)
    return keep


def _floor_of(name: str, score: Tensor, floor: int | Mapping[str, int] | None) -> int:
    default = 1 if score.dim() == 1 else 0
    if floor is None:
        return default
    return floor if isinstance(floor, int) else floor.get(name, default)


def _select_in_rows(score: Tensor, sparsity: float, floor: int, mask: Tensor | None) -> tuple[Tensor, int]:
    """Return the keep mask of a tensor whose rows are pruned alike, and the number of missing entries."""
    rows = score.reshape(len(score), -1) if score.dim() > 1 else score.reshape(1, -1)
    width, alive = rows.shape[1], torch.ones_like(rows, dtype=torch.bool)
    if mask is not None:
        alive = mask.reshape(rows.shape).to(rows.device) != 0
    order = rows.sort(dim=1, stable=True).indices
    order = order.gather(1, alive.gather(1, order).sort(dim=1, stable=True).indices)  # those pruned before first
    places, wanted = order.argsort(dim=1), round(sparsity * width)
    prunable = alive & (rows != torch.inf) & (places < width - floor)
    missing = wanted - (~alive | prunable).sum(dim=1)
    keep = alive & ~(prunable & (places < wanted))
    return keep.reshape(score.shape), int(missing.clamp(min=0).sum())


def _check(
    scores: Mapping[str, Tensor],
    sparsity: float,
    scope: str,
    current: Mapping[str, Tensor] | None,
    gone: Mapping[str, int] | None,
    floor: int | Mapping[str, int] | None,
) -> None:
    if not isinstance(scores, Mapping) or not all(isinstance(score, Tensor) for score in scores.values()):
        raise UsageError(f"scores must be a mapping from name to tensor, got {type(scores).__name__}")
    number(least=0, most=1)("sparsity", sparsity)
    if scope not in SCOPES:
        raise UsageError(unknown("scope", str(scope), SCOPES))
    for name, score in scores.items():
        if score.isnan().any():
            raise UsageError(f"the scores of '{name}' contain NaN")
    floors = floor if isinstance(floor, Mapping) else None
    if floor is not floors:
        whole(0)("floor", floor)
    for what, given in (("current", current), ("gone", gone), ("floor", floors)):
        if given is not None and not isinstance(given, Mapping):
            raise UsageError(f"{what} must be a mapping by name, got {type(given).__name__}")
        for name, value in (given or {}).items():
            if name not in scores:
                raise UsageError(unknown("name without scores", name, list(scores)))
            if what == "current":
                _check_mask(name, value, scores[name])
            else:
                whole(0)(f"{what} of '{name}'", value)


def _check_mask(name: str, mask: object, score: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise UsageError(f"the mask of '{name}' is {type(mask).__name__}, expected a tensor")
    if mask.shape != score.shape:
        raise UsageError(f"the mask of '{name}' has shape {tuple(mask.shape)}, its scores {tuple(score.shape)}")
