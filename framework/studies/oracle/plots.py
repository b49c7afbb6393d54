"""Draw the figures of a study: plots/oracle.png, and plots/oracle_<criterion>.png."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from secateur.framework.reporting.plots.gallery import (
    GONE,
    LEFT,
    label_axes,
    legend_below,
    margins,
    new_bars,
    new_figure,
    save_figure,
    short,
)
from secateur.framework.studies.oracle.correlation import MEASURES
from secateur.framework.studies.oracle.study import Study
from secateur.framework.studies.oracle.tables import shown

PALETTE = (LEFT, GONE, "#4a6fa5")
#: orders of magnitude below the largest value that a logarithmic axis shows
ORDERS = 12
#: largest number of layers with a legend
NAMED = 16


def draw_study(folder: Path, study: Study, title: str) -> None:
    """Draw the overview, and one scatter plot for each criterion."""
    if study.judged:
        save_figure(draw_overview(study, title), folder / "oracle.png")
    for name in study.judged:
        save_figure(draw_scatter(study, name, title), folder / f"oracle_{name}.png")


def draw_overview(study: Study, title: str) -> Figure:
    """Draw bars of every criterion's correlations with the squared change, over all units and within layers."""
    names = study.ranked()
    parts = {"over all layers": "all", "mean over the layers": "layer_mean"}
    figure, panels = new_bars(names, list(parts), 10, f"{title}: correlation with the squared change of the loss")
    y, height = np.arange(len(names)), 0.8 / len(MEASURES)
    for axes, part in zip(panels, parts.values(), strict=True):
        correlations = [study.judged[name].correlation["squared"][part] for name in names]
        for at, measure in enumerate(MEASURES):
            values = [correlation[measure] or 0.0 for correlation in correlations]
            axes.barh(y + (at - 1) * height, values, height, color=PALETTE[at], label=measure.capitalize())
        for line in y:
            if correlations[line]["pearson"] is None:
                axes.text(0.01, line, "not defined", va="center", fontsize=7)
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlim(-1.05, 1.05)
    legend_below(panels[0])
    return figure


def draw_scatter(study: Study, name: str, title: str) -> Figure:
    """Draw the score of each unit against its squared change of the loss, coloured by layer.

    An axis whose values differ by an order of magnitude is logarithmic, unless some are negative; values that are
    zero, or much smaller than the largest, are then drawn at its edge.
    """
    judged, reference = study.judged[name], study.oracle.changes["squared"]
    correlations = judged.correlation["squared"]["all"]
    numbers = ", ".join(f"{measure.capitalize()} {shown(correlations[measure])}" for measure in MEASURES)
    figure = new_figure(8.2, 5, f"{title}: {name}\n{numbers}")
    axes = figure.subplots()
    scores = {layer: values.double() for layer, values in judged.scores.items()}
    finite = {layer: values.isfinite() for layer, values in scores.items()}
    x = _visible(axes, "x", {layer: values[finite[layer]].numpy() for layer, values in scores.items()})
    y = _visible(axes, "y", {layer: reference[layer][finite[layer]].numpy() for layer in scores})
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(x)))
    for layer, colour in zip(x, colours, strict=True):
        axes.scatter(x[layer], y[layer], s=11, alpha=0.7, color=colour, label=short(layer, 22))
    label_axes(axes, f"score of {name}", "squared change of the loss")
    if len(x) <= NAMED:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    else:
        _bar(figure, axes, list(x))
    margins(figure, 0.85, 1.75, 0.6, 0.55)
    return figure


def _visible(axes: Any, which: str, values: dict[str, Any]) -> dict[str, Any]:
    """Choose the scale of an axis, and return the values, those below a logarithmic axis moved to its edge."""
    together = np.concatenate(list(values.values())) if values else np.zeros(0)
    positive = together[together > 0]
    if not len(positive) or (together < 0).any() or positive.max() < 10 * positive.min():
        return values
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter("{x:.0e}")  # plain text: powers of ten take half of the time of a figure
    axis.set_minor_formatter("")
    edge = max(positive.min(), positive.max() / 10.0**ORDERS) / 2
    return {layer: np.maximum(part, edge) for layer, part in values.items()}


def _bar(figure: Figure, axes: Any, layers: list[str]) -> None:
    """Add a colour bar instead of a legend of many layers."""
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1 / 0.95), "viridis")
    bar = figure.colorbar(scale, cax=axes.inset_axes((1.03, 0, 0.04, 1)), ticks=[0, 1])
    bar.ax.set_yticklabels([short(layers[0], 22), short(layers[-1], 22)], fontsize=7)
    bar.ax.set_ylim(0, 1)
