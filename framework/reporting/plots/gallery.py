"""Write figures to files and TensorBoard, with shared sizes, colours and selections of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

DENSE, LEFT, GONE = "#c8cdd3", "#1b7f5c", "#c8553d"
DPI = 110
#: largest number of entries of a tensor in a histogram or a curve; taken with a stride, so always the same
SAMPLE = 50_000
#: largest number of labels on an axis; with more layers only some are labelled
LABELS = 44

T = TypeVar("T")


class Gallery:
    """Writes each figure to a PNG file, which is overwritten, and to TensorBoard with its step."""

    def __init__(self, folder: Path, writer: SummaryWriter) -> None:
        self.folder, self.writer = folder, writer

    def show(self, figure: Figure, file: str, tag: str | None, step: int) -> None:
        """Draw and write a figure; `file` has no suffix, and without a `tag` TensorBoard is skipped."""
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        Image.fromarray(pixels).save(self.folder / f"{file}.png")
        if tag is not None:
            self.writer.add_image(tag, pixels, step, dataformats="HWC")


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure with a title; size in inches. Does not use the global state of pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    # wrapped to the width of the figure: about 13 characters of this size per inch
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / height, va="top", wrap=True)
    return figure


def margins(figure: Figure, left: float, right: float, top: float, bottom: float, **space: float) -> None:
    """Set the margins in inches; faster than the automatic layouts of matplotlib."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, **space)


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
