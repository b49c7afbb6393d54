"""Draw the figures that every run writes to plots/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import nn

from secateur.framework.network.layers import output_dim, prunable_layers, tensor_name
from secateur.framework.network.lineage import lineage_of
from secateur.framework.training.events import PruneEvent

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

DENSE, LEFT, VALIDATION = "#c8cdd3", "#1b7f5c", "#c8553d"
PANELS = 16


def draw_all(
    folder: Path,
    epochs: Sequence[Mapping[str, Any]],
    model: nn.Module,
    events: Sequence[PruneEvent],
    title: str,
) -> list[Path]:
    """Draw every figure that the run has data for, given a row of metrics per epoch; returns the files."""
    files = [draw_layers(folder / "layers.png", model, title)]
    if epochs:
        files.append(draw_curves(folder / "curves.png", epochs, title))
    if events and events[-1].scores:
        files.append(draw_scores(folder / "scores.png", events[-1], title))
    return files


def draw_curves(file: Path, epochs: Sequence[Mapping[str, Any]], title: str) -> Path:
    """Draw accuracy and sparsity over the epochs; both values of an epoch describe the same network."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True)
    for axes, curves in (
        (top, (("acc/train", "train", LEFT), ("acc/val", "validation", VALIDATION))),
        (bottom, (("sparse/node", "nodes", LEFT), ("sparse/weight", "weights", VALIDATION))),
    ):
        for key, label, colour in curves:
            rows = [row for row in epochs if key in row]
            if rows:
                x, y = [row["epoch"] + 1 for row in rows], [row[key] for row in rows]
                axes.plot(x, y, color=colour, label=label, marker="o", markersize=3)
        if axes.lines:
            axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    top.set_ylabel("accuracy")
    bottom.set_ylabel("sparsity")
    bottom.set_ylim(-0.02, 1.02)
    bottom.set_xlabel("epoch")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    return save_figure(figure, file, title)


def draw_layers(file: Path, model: nn.Module, title: str) -> Path:
    """Draw the kept output channels and weights per layer, compared with the dense network."""
    names, kept, units, density = _layer_sizes(model)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 1.4 + 0.32 * len(names)), sharey=True)
    y = np.arange(len(names))
    left.barh(y, units, color=DENSE, label="dense")
    left.barh(y, kept, color=LEFT, label="kept")
    right.barh(y, [1] * len(y), color=DENSE)
    right.barh(y, density, color=LEFT)
    # next to the bars, so that no label crosses an edge
    for at in y:
        left.text(units[at] + max(units) * 0.01, at, f"{kept[at]} / {units[at]}", va="center", fontsize=7)
        right.text(1.01, at, f"{100 * density[at]:.3g} %", va="center", fontsize=7)
    left.set_xlim(0, 1.2 * max(units))
    right.set_xlim(0, 1.15)
    left.set_xlabel("output channels")
    right.set_xlabel("share of the dense layer's weights")
    left.set_yticks(y, names, fontsize=8)
    left.invert_yaxis()
    figure.legend(*left.get_legend_handles_labels(), loc="upper right", ncols=2, frameon=False, fontsize=8)
    return save_figure(figure, file, title)


def _layer_sizes(model: nn.Module) -> tuple[list[str], list[int], list[int], list[float]]:
    """Return names, nonzero channels, dense channels and shares of nonzero weights of the prunable layers."""
    dense = lineage_of(model).dense
    names, kept, units, density = [], [], [], []
    for name, module in prunable_layers(model).items():
        weight: Any = module.weight
        full = dense.get(tensor_name(name, "weight"), tuple(weight.shape))
        rows = weight.detach().movedim(output_dim(module), 0).flatten(1)
        names.append(name or type(model).__name__)
        units.append(full[output_dim(module)])
        kept.append(int(rows.any(dim=1).sum()))
        density.append(int(weight.count_nonzero()) / int(np.prod(full)))
    return names, kept, units, density


def draw_scores(file: Path, event: PruneEvent, title: str) -> Path:
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
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    size = (3 * max(2, columns), 1 + 1.9 * lines)
    figure, panels = plt.subplots(lines, columns, figsize=size, sharex=True, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    for panel, name in zip(panels.flat, names, strict=False):
        keep = event.keep[name].flatten().cpu().numpy()[shown[name]]
        values = np.maximum(drawn[name], bins[0])
        parts, colours = [values[~keep], values[keep]], [DENSE, LEFT]
        style: Any = "stepfilled"  # one outline: forty bars per panel take seconds to draw
        panel.hist(parts, bins=bins, stacked=True, color=colours, label=["pruned", "kept"], histtype=style)
        panel.set_title(_panel_title(name, scores[name], signed), fontsize=8)
        panel.tick_params(labelsize=7, labelbottom=True)
        panel.yaxis.get_major_locator().set_params(integer=True)
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="upper right", ncols=2, frameon=False, fontsize=8)
    figure.supxlabel("score" if signed else "log10 of the score", fontsize=9)
    figure.supylabel("entries", fontsize=9)
    sparsity = event.reached if event.asked is None else event.asked
    return save_figure(figure, file, f"{title}: scores at {sparsity:.3f}")


def _panel_title(name: str, scores: Any, signed: bool) -> str:
    zero, infinite = int((scores == 0).sum()), int(np.isinf(scores).sum())
    aside = [f"{zero:,} at zero"] if zero and not signed else []
    aside += [f"{infinite:,} at infinity"] if infinite else []
    return ", ".join([name, *aside])


def _bins(values: Any) -> Any:
    """Return bin edges for all panels; the lowest thousandth, which can be far away, is put into the first bin."""
    if not len(values):
        return np.linspace(0, 1, 3)
    sample = values[:: max(1, len(values) // 100_000)]  # a sample is sufficient for tens of millions of values
    low, high = np.quantile(sample, 0.001), values.max()
    return np.linspace(low, high if high > low else low + 1, 41)


def save_figure(figure: Any, file: Path, title: str) -> Path:
    """Write a pyplot figure with its title as PNG and close it; returns the file."""
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)
    return file
