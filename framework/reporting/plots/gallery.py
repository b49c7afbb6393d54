"""The style of all figures: sizes, colours, panels, labels and selections of layers; and how they are written.

Figures do not use pyplot, which would keep them in a global state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

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


def show_image(axes: Any, image: Tensor, title: str = "", **options: Any) -> None:
    """Show a colour or grey image (C, H, W) with values in [0, 1], without ticks."""
    shown = image.detach().float().clamp(0, 1).cpu()
    pixels = shown.permute(1, 2, 0) if len(shown) == 3 else shown.mean(dim=0)
    axes.imshow(pixels.numpy(), **{"cmap": "gray", "vmin": 0, "vmax": 1} | options)
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


def label_rows(axes: Any, names: Sequence[str], size: float = 8) -> None:
    """Label the rows of a chart from top to bottom; with many rows only some of them."""
    rows = some(range(len(names)), LABELS)
    axes.set_yticks(rows, [short(names[row]) for row in rows], fontsize=size)
    axes.set_ylim(len(names) - 0.4, -0.6)


def row_height(count: int) -> float:
    """Return the height in inches of a chart with `count` rows, limited to about two screens."""
    return max(0.8, min(0.28 * count, 0.28 * LABELS) + 0.1)


def short(name: str, most: int = 28) -> str:
    """Shorten a name to `most` characters by its beginning, since the ends of layer names differ."""
    return name if len(name) <= most else "…" + name[1 - most :]


def sample(tensor: Tensor, most: int = SAMPLE) -> Tensor:
    """Return at most `most` entries of a tensor, evenly spaced, as float32 on the CPU."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-len(flat) // most))].to("cpu", torch.float32)
