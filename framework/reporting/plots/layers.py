"""Draw bars for each layer: what is kept, how sparse it is, and the statistics of `--track_weights`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import nn

from secateur.framework.network.size import layer_sizes
from secateur.framework.reporting.plots.gallery import DENSE, GONE, LEFT, labelled, legend_below, new_bars


def draw_layers(model: nn.Module, title: str) -> Figure:
    """Draw the kept output channels and weights per layer, compared with the dense network."""
    sizes = list(layer_sizes(model).values())
    labels = ("output channels", "share of the dense layer's weights")
    figure, (left, right) = new_bars([size.name for size in sizes], labels, 10, title)
    channels, dense = [size.channels for size in sizes], [size.dense_channels for size in sizes]
    shares = [size.kept for size in sizes]
    _bars(left, dense, channels, [f"{kept} / {whole}" for kept, whole in zip(channels, dense, strict=True)])
    _bars(right, [1] * len(sizes), shares, [f"{100 * share:.3g} %" for share in shares])
    left.set_xlim(0, 1.2 * max(dense))
    right.set_xlim(0, 1.15)
    legend_below(left)
    return figure


def draw_sparsity(model: nn.Module, title: str) -> Figure:
    """Draw the share of each dense layer's weights that are cut or masked."""
    sizes = list(layer_sizes(model).values())
    label = "weights that are zero or cut out, % of the dense layer's"
    figure, (axes,) = new_bars([size.name for size in sizes], (label,), 8.5, f"{title}: sparsity of each layer")
    pruned = [100 * (1 - size.kept) for size in sizes]
    numbers = [f"{share:.2f} % of {size.dense_weights:,}" for share, size in zip(pruned, sizes, strict=True)]
    _bars(axes, [100] * len(sizes), pruned, numbers, GONE, ("kept weights", "pruned weights"))
    axes.set_xlim(0, 130)
    axes.set_xticks(range(0, 101, 20))
    legend_below(axes)
    return figure


def draw_tracked(summary: Mapping[str, Any], title: str) -> Figure:
    """Draw, per layer, the share of weights that changed sign, the mean sign changes, and the deviation."""
    layers = summary["layers"]
    names = [name.removesuffix(".weight") for name in layers]
    labels = {
        "flipped": "weights that changed sign, %",
        "flips": "sign changes of a weight, mean",
        "deviation": "standard deviation over the steps",
    }
    title += f": weights over {summary['steps']:,} steps, {summary['flipped']:.2%} changed sign at least once"
    figure, panels = new_bars(names, list(labels.values()), 10.5, title)
    for axes, key in zip(panels, labels, strict=True):
        factor = 100 if key == "flipped" else 1
        axes.barh(range(len(names)), [factor * layer[key] for layer in layers.values()], color=LEFT)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    return figure


def _bars(
    axes: Any,
    whole: Sequence[float],
    part: Sequence[float],
    texts: Sequence[str],
    colour: str = LEFT,
    names: tuple[str, str] = ("dense", "kept"),
) -> None:
    """Draw the parts over the grey wholes, and a text next to each whole, so that no text crosses an edge."""
    for sizes, paint, name in zip((whole, part), (DENSE, colour), names, strict=True):
        axes.barh(range(len(sizes)), sizes, color=paint, label=name)
    for row in labelled(texts):
        axes.text(whole[row] + 0.01 * max(whole), row, texts[row], va="center", fontsize=7)
