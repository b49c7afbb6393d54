"""Draw the statistics of `--track_weights`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from secateur.framework.reporting.plots.gallery import LEFT, label_rows, margins, new_figure, row_height


def draw_tracked(summary: Mapping[str, Any], title: str) -> Figure:
    """Draw, per layer, the share of weights that changed sign, the mean sign changes, and the deviation."""
    layers = summary["layers"]
    names = [name.removesuffix(".weight") for name in layers]
    figure = new_figure(
        10.5, row_height(len(names)) + 1.25,
        f"{title}: weights over {summary['steps']:,} steps, {summary['flipped']:.2%} changed sign at least once",
    )  # fmt: skip
    y = np.arange(len(names))
    for axes, key, factor, label in zip(
        figure.subplots(1, 3, sharey=True),
        ("flipped", "flips", "deviation"),
        (100, 1, 1),
        ("weights that changed sign, %", "sign changes of a weight, mean", "standard deviation over the steps"),
        strict=True,
    ):
        axes.barh(y, [factor * layer[key] for layer in layers.values()], color=LEFT)
        axes.set_xlabel(label, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_axisbelow(True)
        label_rows(axes, names)
    margins(figure, 2.1, 0.2, 0.5, 0.6, wspace=0.16)
    return figure
