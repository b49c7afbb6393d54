"""Draw a network, and list its layers as a table: each layer when dense and at present."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_layers
from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import preserved_state
from secateur.framework.network.size import LayerSize, count_macs, layer_sizes
from secateur.framework.reporting.plots.gallery import DENSE, LEFT, margins, new_figure, short

#: layers in one column of the drawing, and the largest number of columns
ROWS, COLUMNS = 40, 4
#: horizontal positions of the numbers next to the blocks; blocks extend from -1 to 1
PLACES = (1.08, 2.25, 3.05, 3.95)


def layers_of(model: nn.Module, example_input: Tensor) -> list[LayerSize]:
    """List the prunable layers in the order of the forward pass; unused layers come last."""
    outputs, sizes = _output_shapes(model, example_input), layer_sizes(model)
    macs = count_macs(model, example_input)[1]
    return [
        replace(sizes[name], output=outputs.get(name, ()), macs=macs.get(name, 0))
        for name in dict.fromkeys([*outputs, *sizes])
    ]


def _output_shapes(model: nn.Module, example_input: Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str, *seen: Any) -> None:
        shapes.setdefault(name, tuple(seen[-1].shape[1:]))

    hooks = [(module, partial(remember, name)) for name, module in prunable_layers(model).items()]
    with hooked(hooks), preserved_state(model), torch.no_grad():
        model(example_input[:1])
    return shapes


def table_of(layers: Sequence[LayerSize], model: nn.Module) -> str:
    """Return the layers as a Markdown table, for the texts of TensorBoard."""
    total = sum(parameter.numel() for parameter in model.parameters())
    head = "| layer | type | output | kept channels | kept weights | parameters | share | MACs a sample |"
    lines = [head, "|---|---|---|---:|---:|---:|---:|---:|"]
    for layer in layers:
        lines.append(
            f"| {layer.name} | {layer.kind} | {_times(layer.output)} | {layer.channels:,} of "
            f"{layer.dense_channels:,} | {layer.weights:,} of {layer.dense_weights:,} | {layer.parameters:,} | "
            f"{layer.parameters / max(1, total):.2%} | {layer.macs:,} |"
        )
    macs = sum(layer.macs for layer in layers)
    lines.append(f"| all | | | | | {total:,} | including norms and biases | {macs:,} |")
    return "\n".join(lines)


def draw_network(layers: Sequence[LayerSize], example_input: Tensor, model: nn.Module, title: str) -> Figure:
    """Draw a block for each layer from the input down: grey the dense layer, green the kept part.

    The width of a block is proportional to the square root of its channels. Next to it are the kept channels of
    the dense layer's, the pixels of its output, its share of the present parameters, and the kept share of the
    dense layer's weights.
    """
    columns = min(COLUMNS, -(-len(layers) // ROWS))
    rows = -(-len(layers) // columns)
    total = sum(parameter.numel() for parameter in model.parameters())
    height = max(2.4, 0.27 * rows + 1.5)
    kept, whole = sum(layer.weights for layer in layers), sum(layer.dense_weights for layer in layers)
    figure = new_figure(
        8.6 * columns, height,
        f"{title}\n{kept:,} of {whole:,} weights kept ({kept / max(1, whole):.3%}), {total:,} parameters present, "
        f"input {_times(tuple(example_input.shape[1:]))}",
    )  # fmt: skip
    widest = max(layer.dense_channels for layer in layers) ** 0.5
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        part = layers[column * rows : (column + 1) * rows]
        _draw_column(axes, part, rows, widest, total)
    blocks = [Rectangle((0, 0), 1, 1, color=colour) for colour in (DENSE, LEFT)]
    figure.legend(blocks, ["dense", "kept"], loc="lower center", ncols=2, frameon=False, fontsize=8)
    margins(figure, 0.1, 0.1, 0.8, 0.4, wspace=0.02)
    return figure


def _draw_column(axes: Any, layers: Sequence[LayerSize], rows: int, widest: float, total: int) -> None:
    """Draw names to the left of -1, blocks from -1 to 1, and numbers to the right of 1."""
    axes.set_xlim(-3.1, 4.7)
    axes.set_ylim(rows - 0.4, -1.2)
    axes.axis("off")
    axes.text(-1.08, -0.85, "layer", ha="right", va="center", fontsize=7, color="#5a6068")
    for place, head in zip(PLACES, ("kept channels", "output", "parameters", "kept weights"), strict=True):
        axes.text(place, -0.85, head, ha="left", va="center", fontsize=7, color="#5a6068")
    before = None
    for row, layer in enumerate(layers):
        half, left = (layer.dense_channels**0.5 / widest, layer.channels**0.5 / widest)
        if before is not None:
            corners = [(-before, row - 0.66), (before, row - 0.66), (half, row - 0.34), (-half, row - 0.34)]
            axes.add_patch(Polygon(corners, color=DENSE, alpha=0.35, linewidth=0))
        axes.add_patch(Rectangle((-half, row - 0.34), 2 * half, 0.68, facecolor=DENSE, linewidth=0))
        axes.add_patch(Rectangle((-left, row - 0.34), 2 * left, 0.68, facecolor=LEFT, linewidth=0))
        axes.text(-1.08, row, f"{short(layer.name, 24)}  {layer.kind}", ha="right", va="center", fontsize=7)
        for place, text in zip(PLACES, _numbers(layer, total), strict=True):
            axes.text(place, row, text, ha="left", va="center", fontsize=7)
        before = half


def _numbers(layer: LayerSize, total: int) -> tuple[str, str, str, str]:
    return (
        f"{layer.channels:,} of {layer.dense_channels:,}",
        "x".join(map(str, layer.output[1:])) if len(layer.output) > 1 else "",
        f"{layer.parameters / max(1, total):.2%}",
        f"{layer.kept:.2%}",
    )


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "not used"
