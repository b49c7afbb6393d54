"""The style of all figures: sizes, colours, panels, labels and selections of layers; and how they are written.

Figures do not use pyplot, which would keep them in a global state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

DENSE, LEFT, GONE = "#c8cdd3", "#1b7f5c", "#c8553d"
DPI = 110
#: largest number of panels of a figure, and of those in a row
PANELS, IN_ROW = 16, 4
#: largest number of entries of a tensor in a histogram or a curve; taken with a stride, so always the same
SAMPLE = 50_000
#: largest number of labels on an axis; with more layers only some are labelled
LABELS = 44

T = TypeVar("T")


def save_figure(figure: Figure, file: Path) -> np.ndarray:
    """Draw a figure, write it as PNG, and return its pixels, uint8 of shape (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).save(file)
    return pixels


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure with a title; size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    # wrapped to the width of the figure: about 13 characters of this size per inch
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / height, va="top", wrap=True)
    return figure


def margins(figure: Figure, left: float, right: float, top: float, bottom: float, **space: float) -> None:
    """Set the margins in inches; faster than the automatic layouts of matplotlib."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, **space)


def new_panels(count: int, height: float, title: str, **options: Any) -> tuple[Figure, list[Any]]:
    """Return a figure with `count` panels, at most four in a row, of this height in inches; and their axes."""
    columns = min(IN_ROW, count)
    lines = -(-count // columns)
    figure = new_figure(2.9 * max(3, columns) + 0.4, height * lines + 1.15, title)
    axes = list(figure.subplots(lines, columns, squeeze=False, **options).flat)
    for unused in axes[count:]:
        unused.axis("off")
    margins(figure, 0.75, 0.15, 0.75, 0.65, wspace=0.28, hspace=0.5)
    return figure, axes[:count]


def image_rows(rows: Mapping[str, Sequence[tuple[Tensor, str]]], title: str) -> tuple[Figure, np.ndarray]:
    """Return a figure of images (C, H, W) with their titles, in rows of equal lengths, and its grid of axes."""
    columns = len(next(iter(rows.values())))
    figure = new_figure(1.35 * max(4, columns) + 0.5, 1.5 * len(rows) + 0.9, title)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, (label, images) in zip(grid, rows.items(), strict=True):
        panels[0].set_ylabel(label, fontsize=8)
        for axes, (image, name) in zip(panels, images, strict=True):
            show_image(axes, image, name)
    margins(figure, 0.4, 0.1, 0.8, 0.1, wspace=0.08, hspace=0.2)
    return figure, grid


def show_image(axes: Any, image: Tensor, title: str) -> None:
    """Show a colour or grey image (C, H, W) with values in [0, 1], without ticks."""
    shown = image.detach().float().clamp(0, 1).cpu()
    pixels = shown.permute(1, 2, 0) if len(shown) == 3 else shown.mean(dim=0)
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])


def class_label(names: Sequence[str] | None, label: int) -> str:
    """Return the name of a class, shortened, or "class N" if it has none."""
    return short(str(names[label]), 13) if names is not None and 0 <= label < len(names) else f"class {label}"


def some(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, most)]


def label_axes(axes: Any, x: str = "", y: str = "", grid: Literal["both", "x"] | None = "both") -> None:
    """Label the axes, and draw a grid behind the data."""
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, alpha=0.3)


def new_bars(names: Sequence[str], labels: Sequence[str], width: float, title: str) -> tuple[Figure, list[Any]]:
    """Return a figure for horizontal bars, and its panels: one for each label, with a row for each name.

    The rows are limited to about two screens; with many rows only some of them are named.
    """
    height = max(0.8, min(0.28 * len(names), 0.28 * LABELS) + 0.1)
    figure = new_figure(width, height + 1.35, title)
    panels = list(figure.subplots(1, len(labels), sharey=True, squeeze=False)[0])
    for axes, label in zip(panels, labels, strict=True):
        label_axes(axes, label, grid="x")
    rows = labelled(names)
    panels[0].set_yticks(rows, [short(names[row]) for row in rows], fontsize=8)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    margins(figure, 2.1, 0.15, 0.6, 0.75, wspace=0.1)
    return figure, panels


def labelled(rows: Sequence[Any]) -> list[int]:
    """Return the numbers of the rows of a chart that are labelled."""
    return some(range(len(rows)), LABELS)


def legend_below(axes: Any) -> None:
    """Draw the legend of a panel in one line at the lower edge of its figure."""
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="lower left", ncols=len(names), frameon=False, fontsize=8)


def short(name: str, most: int = 28) -> str:
    """Shorten a name to `most` characters by its beginning, since the ends of layer names differ."""
    return name if len(name) <= most else "…" + name[1 - most :]


def sample(tensor: Tensor, most: int = SAMPLE) -> Tensor:
    """Return at most `most` entries of a tensor, evenly spaced, as float32 on the CPU."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-len(flat) // most))].to("cpu", torch.float32)
