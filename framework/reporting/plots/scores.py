"""Draw the scores of each pruning step in ascending order, with the threshold between pruned and kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from secateur.framework.reporting.plots.gallery import DENSE, SAMPLE, margins, new_figure
from secateur.framework.training.events import PruneEvent

#: points of a drawn curve
POINTS = 600


@dataclass
class Curve:
    """Scores of one pruning step.

    Attributes:
        asked: Requested sparsity; None for a fixed threshold.
        entries: Number of ranked entries.
        values: Finite scores in ascending order, at most 600, evenly spaced; float32.
        zeros: Number of entries at zero, such as those pruned earlier.
        lowest_kept: Lowest score of the kept entries; None if there are none.
        highest_pruned: Highest score of the pruned entries; None if there are none. With a global ranking it is
            not above `lowest_kept`; with a ranking per layer it can be.
    """

    asked: float | None
    entries: int
    values: np.ndarray
    zeros: int
    lowest_kept: float | None
    highest_pruned: float | None

    @property
    def threshold(self) -> float | None:
        """The score that separates pruned from kept entries; None if no single score does."""
        low, high = self.highest_pruned, self.lowest_kept
        return high if high is not None and low is not None and low <= high else None


def curve_of(event: PruneEvent) -> Curve | None:
    """Return the curve of a pruning step; None for a step without scores."""
    scores = [score.detach().reshape(-1) for score in event.scores.values()]
    kept = [event.keep[name].reshape(-1).to(event.scores[name].device) for name in event.scores]
    if not scores or not sum(map(len, scores)):
        return None
    lowest_kept, highest_pruned = _ends(scores, kept)
    stride = max(1, sum(map(len, scores)) // SAMPLE)
    taken = torch.cat([score[::stride].cpu() for score in scores])
    values = taken[torch.isfinite(taken)].sort().values.numpy()
    places = np.linspace(0, max(0, len(values) - 1), min(POINTS, len(values))).round().astype(int)
    zeros = sum(int((score == 0).sum()) for score in scores)
    return Curve(event.asked, sum(map(len, scores)), values[places], zeros, lowest_kept, highest_pruned)


def _ends(scores: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[float | None, float | None]:
    """Return the lowest finite score of the kept entries and the highest of the pruned entries."""
    low = [score[keep & torch.isfinite(score)] for score, keep in zip(scores, kept, strict=True)]
    high = [score[~keep & torch.isfinite(score)] for score, keep in zip(scores, kept, strict=True)]
    lows = [float(part.min()) for part in low if len(part)]
    highs = [float(part.max()) for part in high if len(part)]
    return (min(lows) if lows else None), (max(highs) if highs else None)


def draw_scores(curves: Sequence[Curve], title: str) -> Figure:
    """Draw one line for each step: the score at each share of the entries; dots mark the thresholds.

    Nonnegative scores are shown by their logarithm, and those at zero are counted in the legend.
    """
    signed = any(bool((curve.values < 0).any()) for curve in curves)
    figure = new_figure(8.5, 4.6, f"{title}: scores of each pruning step, in ascending order")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(curves)))
    for number, (curve, colour) in enumerate(zip(curves, colours, strict=True), 1):
        share = 100 * np.linspace(0, 1, len(curve.values))
        shown = np.ones(len(share), dtype=bool) if signed else curve.values > 0
        values = curve.values[shown] if signed else np.log10(curve.values[shown])
        axes.plot(share[shown], values, color=colour, linewidth=1.5, label=_legend(number, curve))
        if curve.threshold is not None and (signed or curve.threshold > 0):
            height = curve.threshold if signed else np.log10(curve.threshold)
            place = 100 * np.searchsorted(curve.values, curve.threshold) / max(1, len(curve.values) - 1)
            axes.plot([0, place], [height, height], color=colour, linewidth=0.8, linestyle=":")
            axes.plot([place], [height], color=colour, marker="o", markersize=5)
    if signed and any(curve.values.max() > 0 for curve in curves if len(curve.values)):
        width = max(float(np.abs(curve.values).max()) for curve in curves if len(curve.values))
        axes.set_yscale("symlog", linthresh=max(width * 1e-6, 1e-30))
    axes.set_xlabel("share of the entries ranked, %", fontsize=9)
    axes.set_ylabel("score" if signed else "log10 of the score", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color=DENSE, alpha=0.5)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="steps",
                title_fontsize=8)  # fmt: skip
    margins(figure, 0.8, 3.0, 0.5, 0.55)
    return figure


def _legend(number: int, curve: Curve) -> str:
    how = "by a fixed threshold" if curve.asked is None else f"to {curve.asked:.4g}"
    parts = [f"{number}: {how}, {curve.entries:,} entries"]
    if curve.zeros:
        parts.append(f"{curve.zeros:,} at zero")
    if curve.threshold is not None:
        parts.append(f"threshold {curve.threshold:.3g}")
    elif curve.highest_pruned is not None and curve.lowest_kept is not None:
        parts.append(f"pruned up to {curve.highest_pruned:.2g}, kept from {curve.lowest_kept:.2g}")
    return "\n    ".join(parts)
