"""Draw the figures that every run writes to plots/."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from secateur.framework.reporting.plots.gallery import (
    DENSE,
    GONE,
    LEFT,
    PANELS,
    label_rows,
    margins,
    new_figure,
    new_panels,
    row_height,
    save_figure,
    short,
    some,
)
from secateur.framework.reporting.plots.network import sizes_of
from secateur.framework.training.events import PruneEvent


def draw_all(
    folder: Path,
    epochs: Sequence[Mapping[str, Any]],
    model: nn.Module,
    events: Sequence[PruneEvent],
    title: str,
) -> None:
    """Draw every figure that the run has data for, given a row of metrics per epoch."""
    save_figure(draw_layers(model, title), folder / "layers.png")
    if epochs:
        save_figure(draw_curves(epochs, title), folder / "curves.png")
    if events and events[-1].scores:
        save_figure(draw_last_scores(events[-1], title), folder / "scores.png")


def draw_curves(epochs: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw accuracy and sparsity over the epochs; both values of an epoch describe the same network."""
    figure = new_figure(7, 6, title)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, what, curves in (
        (top, "accuracy", (("acc/train", "train", LEFT), ("acc/val", "validation", GONE))),
        (bottom, "sparsity", (("sparse/node", "nodes", LEFT), ("sparse/weight", "weights", GONE))),
    ):
        for key, label, colour in curves:
            rows = [row for row in epochs if key in row]
            if rows:
                x, y = [row["epoch"] + 1 for row in rows], [row[key] for row in rows]
                axes.plot(x, y, color=colour, label=label, marker="o", markersize=3)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.set_ylabel(what, fontsize=9)
    bottom.set_ylim(-0.02, 1.02)
    bottom.set_xlabel("epoch", fontsize=9)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    margins(figure, 0.7, 0.15, 0.45, 0.55, hspace=0.08)
    return figure


def draw_layers(model: nn.Module, title: str) -> Figure:
    """Draw the kept output channels and weights per layer, compared with the dense network."""
    sizes = sizes_of(model)
    figure = new_figure(10, row_height(len(sizes)) + 1.25, title)
    left, right = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(sizes))
    channels, dense = [size.channels for size in sizes.values()], [size.dense_channels for size in sizes.values()]
    shares = [size.weights / size.dense_weights for size in sizes.values()]
    left.barh(y, dense, color=DENSE, label="dense")
    left.barh(y, channels, color=LEFT, label="kept")
    right.barh(y, [1] * len(y), color=DENSE)
    right.barh(y, shares, color=LEFT)
    # next to the bars, so that no label crosses an edge
    for row in some(range(len(y)), 44):
        left.text(dense[row] + max(dense) * 0.01, row, f"{channels[row]} / {dense[row]}", va="center", fontsize=7)
        right.text(1.01, row, f"{100 * shares[row]:.3g} %", va="center", fontsize=7)
    left.set_xlim(0, 1.2 * max(dense))
    right.set_xlim(0, 1.15)
    for axes, what in ((left, "output channels"), (right, "share of the dense layer's weights")):
        axes.set_xlabel(what, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
    label_rows(left, list(sizes))
    figure.legend(*left.get_legend_handles_labels(), loc="lower left", ncols=2, frameon=False, fontsize=8)
    margins(figure, 2.1, 0.15, 0.45, 0.6, wspace=0.1)
    return figure


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
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="lower left", ncols=2, frameon=False, fontsize=8)
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
