"""Draw the weights of a network: histograms, filters and matrices."""

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.framework.network.layers import output_dim, prunable_layers, prunable_weights
from secateur.framework.reporting.plots.gallery import (
    DENSE,
    LEFT,
    PANELS,
    margins,
    new_panels,
    sample,
    short,
    some,
)

#: largest number of filters of the first layer, and of pixels (rows, columns) of a matrix
FILTERS, ROWS, COLUMNS = 64, 192, 384


def nonzero_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the nonzero weights in a sample of each layer."""
    samples = {name: sample(weight) for name, weight in prunable_weights(model).items()}
    layers = [name.removesuffix("weight").removesuffix(".") or type(model).__name__ for name in samples]
    return {name: values[values != 0] for name, values in zip(layers, samples.values(), strict=True)}


def draw_histograms(model: nn.Module, title: str) -> Figure:
    """Draw histograms of the nonzero weights: magnitudes of all layers, then a panel for each layer."""
    weights = list(prunable_weights(model).values())
    layers = nonzero_weights(model)
    shown = some(list(zip(layers, weights, strict=True)), PANELS - 1)
    of = f" ({len(shown)} of {len(layers)} layers)" if len(shown) < len(layers) else ""
    figure, panels = new_panels(len(shown) + 1, 1.95, f"{title}: nonzero weights{of}")
    every = torch.cat(list(layers.values())).abs().log10().numpy()
    _histogram(panels[0], every, "all layers: log10 of |weight|", LEFT)
    for axes, (name, weight) in zip(panels[1:], shown, strict=True):
        zero = weight.numel() - int(weight.count_nonzero())
        label = f"{short(name, 20)}, {zero:,} of {weight.numel():,} zero"
        _histogram(axes, layers[name].numpy(), label, DENSE)
    figure.supxlabel("weight (first panel: log10 of its magnitude)", fontsize=9)
    figure.supylabel("weights, % of those shown", fontsize=9)
    return figure


def _histogram(axes: Any, values: np.ndarray, title: str, colour: str) -> None:
    axes.set_title(title, fontsize=7)
    axes.tick_params(labelsize=7)
    if not len(values):
        axes.text(0.5, 0.5, "all zero", ha="center", va="center", transform=axes.transAxes, fontsize=8)
        return
    share = np.full(len(values), 100 / len(values))
    axes.hist(values, bins=50, weights=share, color=colour, edgecolor=LEFT, linewidth=0.3, histtype="stepfilled")


def weight_images(model: nn.Module, example_input: Tensor) -> dict[str, np.ndarray]:
    """Return an image of each weight, uint8 of shape (H, W, 3).

    The first layer's filters are small images if its inputs are pixels: blue below zero, white at zero and red
    above, or the colours of the filter for three channels. Every other weight is a matrix, with output units in
    the rows and inputs in the columns, white at zero and darker for larger mean magnitudes.
    """
    layers = prunable_layers(model)
    images = {}
    for place, (name, module) in enumerate(layers.items()):
        weight = module.weight
        assert isinstance(weight, Tensor)
        rows = weight.detach().movedim(output_dim(module), 0).float()
        filters = _as_filters(rows, example_input) if place == 0 else None
        image = _matrix(rows.flatten(1)) if filters is None else _tiles(filters)
        images[name or type(model).__name__] = image
    return images


def _as_filters(rows: Tensor, example_input: Tensor) -> Tensor | None:
    """Return the first layer's weights as images (units, C, H, W), or None if its inputs are not pixels."""
    if rows.dim() == 4 and min(rows.shape[2:]) > 1:
        return rows
    shape = example_input.shape[1:]
    if rows.dim() == 2 and len(shape) == 3 and rows.shape[1] == shape.numel():
        return rows.reshape(-1, *shape)
    return None


def _tiles(filters: Tensor) -> np.ndarray:
    """Arrange the first filters in a grid with a frame of one pixel, each scaled by its largest weight."""
    filters = filters[:FILTERS].cpu()
    if filters.shape[1] not in (1, 3):  # more or fewer channels are not colours
        filters = filters.mean(dim=1, keepdim=True)
    scale = filters.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
    shown = (filters / scale).permute(0, 2, 3, 1).numpy()
    coloured = 0.5 + shown / 2 if shown.shape[3] == 3 else matplotlib.colormaps["bwr"](0.5 + shown[..., 0] / 2)
    pixels = (255 * coloured[..., :3]).round().astype(np.uint8)
    count, height, width, _ = pixels.shape
    columns = min(count, int(np.ceil(np.sqrt(count * 1.6))))
    lines = -(-count // columns)
    grid = np.full((lines * (height + 1) + 1, columns * (width + 1) + 1, 3), 160, dtype=np.uint8)
    for number, tile in enumerate(pixels):
        top, left = (number // columns) * (height + 1) + 1, (number % columns) * (width + 1) + 1
        grid[top : top + height, left : left + width] = tile
    return _enlarged(grid)


def _matrix(rows: Tensor) -> np.ndarray:
    """Average the magnitudes to at most ROWS x COLUMNS pixels; the darkest is the 99th percentile."""
    size = (min(ROWS, rows.shape[0]), min(COLUMNS, rows.shape[1]))
    shown = F.adaptive_avg_pool2d(rows.abs()[None], size)[0].cpu().numpy()
    left = shown[shown > 0]
    top = float(np.quantile(left, 0.99)) if len(left) else 1.0
    coloured = matplotlib.colormaps["Greens"](np.clip(shown / max(top, 1e-30), 0, 1))
    coloured[shown == 0] = 1.0
    return _enlarged((255 * coloured[..., :3]).round().astype(np.uint8))


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    """Repeat the pixels up to the size at which TensorBoard shows images."""
    times = max(1, 200 // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def draw_weights(images: Mapping[str, np.ndarray], model: nn.Module, title: str) -> Figure:
    """Draw the images of `weight_images`, or an evenly spaced selection, in one figure."""
    layers = prunable_layers(model)
    shown = some(list(images), PANELS)
    of = f" ({len(shown)} of {len(images)} layers)" if len(shown) < len(images) else ""
    figure, panels = new_panels(len(shown), 2.1, f"{title}: weights of each layer{of}")
    for axes, name in zip(panels, shown, strict=True):
        axes.axis("off")
        weight = layers.get(name, model).weight
        assert isinstance(weight, Tensor)
        aspect = "equal" if name == next(iter(images)) else "auto"
        axes.imshow(images[name], aspect=aspect, interpolation="nearest")
        axes.set_title(f"{short(name, 26)}\n{' x '.join(map(str, weight.shape))}", fontsize=7)
    note = (
        "first layer: filters, if its inputs are pixels (red above zero, blue below); "
        "others: output units in rows, inputs in columns, white is zero, dark is large"
    )
    width, height = figure.get_size_inches()
    figure.text(0.5, 0.1 / height, fill(note, int(12 * width)), ha="center", va="bottom", fontsize=7)
    margins(figure, 0.15, 0.15, 0.75, 0.55, wspace=0.12, hspace=0.4)
    return figure
