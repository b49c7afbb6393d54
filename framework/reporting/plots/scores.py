"""Draw the scores of pruning steps: in ascending order with the threshold, and as histograms of the last step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from secateur.framework.reporting.plots.gallery import (
    DENSE,
    LEFT,
    PANELS,
    label_axes,
    legend_below,
    margins,
    new_figure,
    new_panels,
    sample,
    short,
    some,
)
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
    if not sum(score.numel() for score in event.scores.values()):
        return None
    scores = torch.cat([score.detach().flatten() for score in event.scores.values()])
    keep = torch.cat([event.keep[name].flatten().to(scores.device) for name in event.scores])
    finite = scores.isfinite()
    kept, pruned = scores[keep & finite], scores[~keep & finite]
    drawn = sample(scores)
    return Curve(
        asked=event.asked,
        entries=len(scores),
        values=np.array(some(drawn[drawn.isfinite()].sort().values.tolist(), POINTS), dtype=np.float32),
        zeros=int((scores == 0).sum()),
        lowest_kept=float(kept.min()) if len(kept) else None,
        highest_pruned=float(pruned.max()) if len(pruned) else None,
    )


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
    label_axes(axes, "share of the entries ranked, %", "score" if signed else "log10 of the score")
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


def draw_last_scores(event: PruneEvent, title: str) -> Figure:
    """Draw a histogram of the last pruning step's scores per layer, pruned and kept, with a common scale.

    Nonnegative scores are shown by their logarithm. Entries at zero (such as those pruned earlier) and at infinity
    are counted in the title of the panel.
    """
    names = list(event.scores)[:PANELS]
    scores = {name: event.scores[name].flatten().cpu().float().numpy() for name in names}
    signed = any((values < 0).any() for values in scores.values())
    shown = {name: np.isfinite(values) & (signed | (values > 0)) for name, values in scores.items()}
    drawn = {name: values[shown[name]] for name, values in scores.items()}
    if not signed:
        drawn = {name: np.log10(values) for name, values in drawn.items()}
    bins = _bins(np.concatenate(list(drawn.values())))
    sparsity = event.reached if event.asked is None else event.asked
    figure, panels = new_panels(len(names), 1.95, f"{title}: scores at {sparsity:.3f}", sharex=True)
    for panel, name in zip(panels, names, strict=True):
        keep = event.keep[name].flatten().cpu().numpy()[shown[name]]
        values = np.maximum(drawn[name], bins[0])
        parts, colours = [values[~keep], values[keep]], [DENSE, LEFT]
        style: Any = "stepfilled"  # one outline: forty bars per panel take seconds to draw
        panel.hist(parts, bins=bins, stacked=True, color=colours, label=["pruned", "kept"], histtype=style)
        panel.set_title(_panel_title(name, scores[name], signed), fontsize=7)
        panel.tick_params(labelsize=7, labelbottom=True)
        panel.yaxis.get_major_locator().set_params(integer=True)
    legend_below(panels[0])
    figure.supxlabel("score" if signed else "log10 of the score", fontsize=9)
    figure.supylabel("entries", fontsize=9)
    return figure


def _panel_title(name: str, scores: Any, signed: bool) -> str:
    zero, infinite = int((scores == 0).sum()), int(np.isinf(scores).sum())
    aside = [f"{zero:,} at zero"] if zero and not signed else []
    aside += [f"{infinite:,} at infinity"] if infinite else []
    return ", ".join([short(name, 30), *aside])


def _bins(values: Any) -> Any:
    """Return bin edges for all panels; the lowest thousandth, which can be far away, is put into the first bin."""
    if not len(values):
        return np.linspace(0, 1, 3)
    sample = values[:: max(1, len(values) // 100_000)]  # a sample is sufficient for tens of millions of values
    low, high = np.quantile(sample, 0.001), values.max()
    return np.linspace(low, high if high > low else low + 1, 41)
