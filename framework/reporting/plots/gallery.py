"""Where pictures go, and what they have in common: sizes in inches, colours, choices of layers."""

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
#: numbers taken of a tensor for a histogram or a curve; a stride, so that the same ones are taken each time
SAMPLE = 50_000
#: labels along an axis; of more layers only some are named
LABELS = 44

T = TypeVar("T")


class Gallery:
    """Shows each picture twice: as a PNG file, where the newest one stays, and in TensorBoard, with its step."""

    def __init__(self, folder: Path, writer: SummaryWriter) -> None:
        self.folder, self.writer = folder, writer

    def show(self, figure: Figure, file: str, tag: str | None, step: int) -> None:
        """Draw once; `file` has no ending, `tag` None keeps it out of TensorBoard."""
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        Image.fromarray(pixels).save(self.folder / f"{file}.png")
        if tag is not None:
            self.writer.add_image(tag, pixels, step, dataformats="HWC")


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of this size in inches with a title; nothing of pyplot's global state is used."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    # never wider than the figure: about 13 characters of this size go into an inch
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / height, va="top", wrap=True)
    return figure


def margins(figure: Figure, left: float, right: float, top: float, bottom: float, **space: float) -> None:
    """Borders in inches; cheaper than letting matplotlib try layouts."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, **space)


def some(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, evenly chosen; the first and the last are among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, most)]


def label_rows(axes: Any, names: Sequence[str], size: float = 8) -> None:
    """Names at the rows of a chart from top to bottom; of many rows only some are named."""
    rows = some(range(len(names)), LABELS)
    axes.set_yticks(rows, [short(names[row]) for row in rows], fontsize=size)
    axes.set_ylim(len(names) - 0.4, -0.6)


def row_height(count: int) -> float:
    """Inches for a chart of so many rows: each readable, the whole never taller than a screen or two."""
    return max(0.8, min(0.28 * count, 0.28 * LABELS) + 0.1)


def short(name: str, most: int = 28) -> str:
    """A name that fits; of a long one the end tells layers apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def sample(tensor: Tensor, most: int = SAMPLE) -> Tensor:
    """At most so many of a tensor's numbers, evenly spread, float32 on the CPU."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, -(-len(flat) // most))].to("cpu", torch.float32)
