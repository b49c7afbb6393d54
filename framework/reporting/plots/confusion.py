"""Draw the confusion matrix of a classifier."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from secateur.framework.network.preserve import evaluating
from secateur.framework.reporting.plots.gallery import label_axes, margins, new_figure, short, some
from secateur.utils.classification import confusion_counts
from secateur.utils.loading.batches import BatchLoader

#: largest number of classes for which counts are written into the cells, and for which all names are shown
WRITTEN, NAMED = 20, 40


@torch.inference_mode()
def count_confusion(model: nn.Module, loader: BatchLoader) -> Tensor:
    """Count true classes (rows) by predicted classes (columns) over a loader; int64, of shape (C, C)."""
    with evaluating(model):
        return torch.stack([confusion_counts(model(inputs), targets) for inputs, targets in loader]).sum(dim=0)


def draw_confusion(table: Tensor, names: Sequence[str] | None, part: str, title: str) -> Figure:
    """Draw counts and, in a second panel, shares of each true class. For few classes the cells contain numbers.

    Args:
        table: Counts of shape (C, C), a row for each true class.
        names: Names of the classes; None for their numbers.
        part: Name of the evaluated images, for the title.
        title: Beginning of the title.
    """
    counts = table.cpu().to(torch.float64)
    classes, images = len(counts), int(counts.sum())
    rows = counts.sum(dim=1, keepdim=True)
    shares = torch.where(rows > 0, counts / rows.clamp(min=1), 0.0)
    right = int(counts.trace())
    side = min(9.0, max(3.2, 0.42 * classes))
    figure = new_figure(
        2 * side + 4.2, side + 2.1,
        f"{title}: confusion of {images:,} {part} images, {right:,} right ({right / max(1, images):.2%})",
    )  # fmt: skip
    panels = figure.subplots(1, 2)
    labels = [str(name) for name in names] if names else [str(number) for number in range(classes)]
    for axes, values, what in ((panels[0], counts, "images"), (panels[1], 100 * shares, "% of the true class")):
        shown = axes.imshow(values.numpy(), cmap="Greens", vmin=0, interpolation="nearest", aspect="auto")
        _label(axes, labels)
        axes.set_title(what, fontsize=9)
        scale = axes.inset_axes((1.02, 0, 0.03, 1))
        figure.colorbar(shown, cax=scale).ax.tick_params(labelsize=7)
        if classes <= WRITTEN:
            _write(axes, values)
    margins(figure, 1.35, 0.5, 0.75, 1.3, wspace=0.42 if classes <= NAMED else 0.3)
    return figure


def _label(axes: Any, labels: Sequence[str]) -> None:
    shown = range(len(labels)) if len(labels) <= NAMED else some(range(len(labels)), 12)
    texts = [short(labels[place], 16) for place in shown]
    axes.set_xticks(shown, texts, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(shown, texts)
    label_axes(axes, "predicted class", "true class", grid=None)


def _write(axes: Any, values: Tensor) -> None:
    for row, column in values.nonzero().tolist():
        value = float(values[row, column])
        colour = "white" if value > float(values.max()) / 2 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
