"""Draw the figures of a run: `Pictures` those in the course of training, `draw_all` those at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from secateur.framework.reporting.plots.confusion import count_confusion, draw_confusion
from secateur.framework.reporting.plots.gallery import GONE, LEFT, label_axes, margins, new_figure, save_figure
from secateur.framework.reporting.plots.layers import draw_layers, draw_sparsity, draw_tracked
from secateur.framework.reporting.plots.network import draw_network, layers_of, table_of
from secateur.framework.reporting.plots.saliency import IMAGES, draw_saliency, input_gradients
from secateur.framework.reporting.plots.scores import Curve, curve_of, draw_last_scores, draw_scores
from secateur.framework.reporting.plots.weights import (
    draw_histograms,
    draw_weights,
    nonzero_weights,
    weight_images,
)
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer
    from secateur.utils.loading.batches import BatchLoader


#: figure -> its file in plots/ without suffix, and its tag in TensorBoard, if it is shown there
FILES: dict[str, tuple[str, str | None]] = {
    "sparsity": ("layer_sparsity", "layer/sparsity"),
    "saliency": ("network_saliency", "network/saliency"),
    "histograms": ("weight_histograms", None),
    "weights": ("weights", None),
    "network": ("network", "network/visualisation"),
    "confusion": ("network_confusion", "network/confusion"),
    "scores": ("weight_saliency", "track/weight_saliency"),
    "tracked weights": ("tracked_weights", "track/weights"),
}


class Pictures:
    """Draws the figures selected by the flags; the results of the run do not depend on it.

    `before` and `after` are called by the run, outside the time of training; the other methods are hooks. Each
    file in plots/ shows the most recent state, TensorBoard all of them.
    """

    def __init__(self, config: RunConfig, folder: Path, writer: SummaryWriter) -> None:
        self._config, self._folder, self._writer = config, folder, writer
        self._title = f"{config.model} on {config.data_set}, {config.prune_criterion}"
        #: whether the network was loaded: the confusion matrix of an untrained network is not drawn
        self._loaded = config.checkpoint_name is not None or config.pretrained is not None
        self._curves: list[Curve] = []
        self._drawn = 0
        self._examples: tuple[Tensor, Tensor] | None = None

    def before(self, trainer: Trainer) -> None:
        """Draw the network before any pruning."""
        rows = [f"| {name} | {str(value).replace('|', ' ')} |" for name, value in self._config.to_dict().items()]
        self._writer.add_text("args", "\n".join(["| setting | value |", "|---|---|", *rows]), 0)
        if not self._config.skip_first_plot:
            self._draw(trainer, "before training", trainer.loaders.val if self._loaded else None, "validation")

    @hookimpl
    def pruned(self, trainer: Trainer, event: PruneEvent) -> None:
        """Store a few hundred of the scores; they are drawn after the last step of this moment."""
        curve = curve_of(event)
        if curve is not None:
            self._curves.append(curve)

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """Draw the scores of all pruning steps, if there was one since they were drawn."""
        if len(self._curves) > self._drawn:
            self._drawn = len(self._curves)
            self._show(trainer, "scores", lambda: draw_scores(self._curves, self._title))

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """Draw every `plot_weights_freq` epochs, before any pruning; the last epoch is drawn by `after`."""
        done = trainer.epoch + 1
        if done % self._config.plot_weights_freq == 0 and done < trainer.settings.epochs:
            self._draw(trainer, f"after epoch {done}", trainer.loaders.val, "validation")

    def after(self, trainer: Trainer) -> None:
        """Draw the finished network, after its test."""
        self.epoch_started(trainer)
        part = "validation" if self._config.tuning else "test"
        self._draw(trainer, "after training", trainer.loaders.test, part)

    def tracked(self, trainer: Trainer, summary: Mapping[str, Any]) -> None:
        """Draw the statistics of the tracked weights."""
        self._show(trainer, "tracked weights", lambda: draw_tracked(summary, self._title))

    def _draw(self, trainer: Trainer, when: str, loader: BatchLoader | None, part: str) -> None:
        """Draw the network, and the confusion matrix of the images of a loader, if there is one."""
        title, config = f"{self._title}, {when}", self._config
        self._show(trainer, "sparsity", lambda: draw_sparsity(trainer.model, title))
        if config.saliency:
            self._show(trainer, "saliency", lambda: self._saliency(trainer, title))
        if config.histograms:
            self._show(trainer, "histograms", lambda: self._histograms(trainer, title))
        if config.plot_weights:
            self._show(trainer, "weights", lambda: self._weights(trainer, title))
        if config.plot_net:
            self._show(trainer, "network", lambda: self._network(trainer, title))
        if config.confusion and loader is not None:
            own = trainer.confusion if when != "before training" else None
            self._show(trainer, "confusion", lambda: self._confusion(trainer, own, loader, part, title))

    def _show(self, trainer: Trainer, name: str, draw: Callable[[], Figure]) -> None:
        """Draw and write a figure; an error is reported as a warning and does not stop the run."""
        file, tag = FILES[name]
        try:
            pixels = save_figure(draw(), self._folder / f"{file}.png")
            if tag is not None:
                self._writer.add_image(tag, pixels, trainer.progress.samples, dataformats="HWC")
        except OSError:
            raise
        except Exception as error:  # third-party networks may raise any error while they are inspected
            trainer.warn(f"figure of {name} not drawn: {type(error).__name__}: {error}")

    def _saliency(self, trainer: Trainer, title: str) -> Figure:
        loaders = trainer.loaders
        if self._examples is None:
            ((images, targets),) = loaders.test.plain([torch.arange(min(IMAGES, loaders.test.num_samples))])
            self._examples = images, targets
        images, targets = self._examples
        inputs = images.contiguous(memory_format=trainer.memory_format)
        gradients, predicted = input_gradients(trainer.model, inputs)
        shape = (1, -1, 1, 1)
        pixels = images * images.new_tensor(loaders.std).view(shape) + images.new_tensor(loaders.mean).view(shape)
        return draw_saliency(pixels, gradients, targets, predicted, loaders.class_names, title)

    def _histograms(self, trainer: Trainer, title: str) -> Figure:
        layers = {f"weight/magnitude/{name}": part.abs() for name, part in nonzero_weights(trainer.model).items()}
        layers["weight/magnitude"] = torch.cat(list(layers.values()))
        for tag, values in layers.items():
            if len(values):
                self._writer.add_histogram(tag, values, trainer.progress.samples)
        return draw_histograms(trainer.model, title)

    def _weights(self, trainer: Trainer, title: str) -> Figure:
        images = weight_images(trainer.model, trainer.example_input)
        for name, pixels in images.items():
            self._writer.add_image(f"weight/{name}", pixels, trainer.progress.samples, dataformats="HWC")
        return draw_weights(images, trainer.model, title)

    def _network(self, trainer: Trainer, title: str) -> Figure:
        layers = layers_of(trainer.model, trainer.example_input)
        self._writer.add_text("architecture", table_of(layers, trainer.model), trainer.progress.samples)
        return draw_network(layers, trainer.example_input, trainer.model, title)

    def _confusion(
        self, trainer: Trainer, table: Tensor | None, loader: BatchLoader, part: str, title: str
    ) -> Figure:
        """Draw the counts of the last evaluation, or evaluate once more if they are not those of the loader."""
        # the batches of an evaluation may be limited
        samples = min(loader.num_samples, len(loader) * loader.batch_size)
        if table is None or int(table.sum()) != samples:
            table = count_confusion(trainer.model, loader)
        return draw_confusion(table, trainer.loaders.class_names, part, title)


def draw_all(
    folder: Path,
    epochs: Sequence[Mapping[str, Any]],
    model: nn.Module,
    events: Sequence[PruneEvent],
    title: str,
) -> None:
    """Draw every figure that the run has data for, given a row of metrics per epoch."""
    save_figure(draw_layers(model, title), folder / "layers.png")
    if epochs:
        save_figure(draw_curves(epochs, title), folder / "curves.png")
    if events and events[-1].scores:
        save_figure(draw_last_scores(events[-1], title), folder / "scores.png")


def draw_curves(epochs: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw accuracy and sparsity over the epochs; both values of an epoch describe the same network."""
    figure = new_figure(7, 6, title)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, what, curves in (
        (top, "accuracy", (("acc/train", "train", LEFT), ("acc/val", "validation", GONE))),
        (bottom, "sparsity", (("sparse/node", "nodes", LEFT), ("sparse/weight", "weights", GONE))),
    ):
        for key, label, colour in curves:
            rows = [row for row in epochs if key in row]
            if rows:
                x, y = [row["epoch"] + 1 for row in rows], [row[key] for row in rows]
                axes.plot(x, y, color=colour, label=label, marker="o", markersize=3)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
        label_axes(axes, "epoch" if axes is bottom else "", what)
    bottom.set_ylim(-0.02, 1.02)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    margins(figure, 0.7, 0.15, 0.45, 0.55, hspace=0.08)
    return figure
