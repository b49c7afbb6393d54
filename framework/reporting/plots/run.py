"""Draw the figures that every run writes to plots/."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from secateur.framework.reporting.plots.gallery import GONE, LEFT, label_axes, margins, new_figure, save_figure
from secateur.framework.reporting.plots.layers import draw_layers
from secateur.framework.reporting.plots.scores import draw_last_scores
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
        label_axes(axes, "epoch" if axes is bottom else "", what)
    bottom.set_ylim(-0.02, 1.02)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    margins(figure, 0.7, 0.15, 0.45, 0.55, hspace=0.08)
    return figure
