"""Draw the figures of a run: before training, every few epochs, and after the test of the finished network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from secateur.framework.network.size import layer_sparsities
from secateur.framework.reporting.plots.confusion import count_confusion, draw_confusion
from secateur.framework.reporting.plots.gallery import Gallery
from secateur.framework.reporting.plots.network import draw_network, layers_of, table_of
from secateur.framework.reporting.plots.saliency import IMAGES, draw_saliency, input_gradients
from secateur.framework.reporting.plots.scores import Curve, curve_of, draw_scores
from secateur.framework.reporting.plots.tracked import draw_tracked
from secateur.framework.reporting.plots.weights import (
    draw_histograms,
    draw_sparsity,
    draw_weights,
    magnitudes,
    weight_images,
)
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer
    from secateur.utils.loading.batches import BatchLoader


class Pictures:
    """Draws the figures selected by the flags; the results of the run do not depend on it.

    `before` and `after` are called by the run, outside the time of training; the other methods are hooks. Each
    file in plots/ shows the most recent state, TensorBoard all of them.
    """

    def __init__(self, config: RunConfig, folder: Path, writer: SummaryWriter) -> None:
        self._config, self._gallery = config, Gallery(folder, writer)
        self._title = f"{config.model} on {config.data_set}, {config.prune_criterion}"
        #: whether the network was loaded: the confusion matrix of an untrained network is not drawn
        self._loaded = config.checkpoint_name is not None or config.pretrained is not None
        self._curves: list[Curve] = []
        self._drawn = 0
        self._examples: tuple[Tensor, Tensor] | None = None

    def before(self, trainer: Trainer) -> None:
        """Draw the network before any pruning."""
        rows = [f"| {name} | {str(value).replace('|', ' ')} |" for name, value in self._config.to_dict().items()]
        self._gallery.writer.add_text("args", "\n".join(["| setting | value |", "|---|---|", *rows]), 0)
        if self._config.skip_first_plot:
            return
        self._draw(trainer, "before training")
        if self._loaded and self._config.confusion and trainer.loaders.val is not None:
            self._try(trainer, "confusion", lambda: self._confusion(trainer, "before training", "validation"))

    @hookimpl
    def pruned(self, trainer: Trainer, event: PruneEvent) -> None:
        """Store a few hundred of the scores; they are drawn after the last step of this moment."""
        curve = curve_of(event)
        if curve is not None:
            self._curves.append(curve)

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """Draw the scores of the pruning steps since the last epoch."""
        self._scores(trainer)

    @hookimpl
    def epoch_ended(self, trainer: Trainer) -> None:
        """Draw every `plot_weights_freq` epochs, before any pruning; the last epoch is drawn by `after`."""
        done = trainer.epoch + 1
        if done % self._config.plot_weights_freq or done >= trainer.settings.epochs:
            return
        when = f"after epoch {done}"
        self._draw(trainer, when)
        if self._config.confusion and trainer.loaders.val is not None:
            self._try(trainer, "confusion", lambda: self._confusion(trainer, when, "validation"))

    def after(self, trainer: Trainer) -> None:
        """Draw the finished network, after its test."""
        self._scores(trainer)
        self._draw(trainer, "after training")
        if self._config.confusion:
            part = "validation" if self._config.tuning else "test"
            self._try(trainer, "confusion", lambda: self._confusion(trainer, "after training", part))

    def tracked(self, trainer: Trainer, summary: Mapping[str, Any]) -> None:
        """Draw the statistics of the tracked weights."""

        def draw() -> None:
            figure = draw_tracked(summary, self._title)
            self._gallery.show(figure, "tracked_weights", "track/weights", trainer.progress.samples)

        self._try(trainer, "tracked weights", draw)

    def _draw(self, trainer: Trainer, when: str) -> None:
        title, config = f"{self._title}, {when}", self._config
        wanted: dict[str, tuple[bool, Callable[[Trainer, str], None]]] = {
            "sparsity": (True, self._sparsity),
            "saliency": (config.saliency, self._saliency),
            "histograms": (config.histograms, self._histograms),
            "weights": (config.plot_weights, self._weights),
            "network": (config.plot_net, self._network),
        }
        for name, (asked, draw) in wanted.items():
            if asked:
                self._try(trainer, name, lambda draw=draw: draw(trainer, title))  # type: ignore[misc]

    def _try(self, trainer: Trainer, name: str, draw: Callable[[], None]) -> None:
        """Draw a figure; an error is reported as a warning and does not stop the run."""
        try:
            draw()
        except OSError:
            raise
        except Exception as error:  # third-party networks may raise any error while they are inspected
            trainer.warn(f"figure of {name} not drawn: {type(error).__name__}: {error}")

    def _sparsity(self, trainer: Trainer, title: str) -> None:
        figure = draw_sparsity(layer_sparsities(trainer.model), trainer.model, title)
        self._gallery.show(figure, "layer_sparsity", "layer/sparsity", trainer.progress.samples)

    def _saliency(self, trainer: Trainer, title: str) -> None:
        loaders = trainer.loaders
        if self._examples is None:
            ((images, targets),) = loaders.test.plain([torch.arange(min(IMAGES, loaders.test.num_samples))])
            self._examples = images, targets
        images, targets = self._examples
        inputs = images.contiguous(memory_format=trainer.memory_format)
        gradients, predicted = input_gradients(trainer.model, inputs)
        shape = (1, -1, 1, 1)
        pixels = images * images.new_tensor(loaders.std).view(shape) + images.new_tensor(loaders.mean).view(shape)
        figure = draw_saliency(pixels, gradients, targets, predicted, loaders.class_names, title)
        self._gallery.show(figure, "network_saliency", "network/saliency", trainer.progress.samples)

    def _histograms(self, trainer: Trainer, title: str) -> None:
        writer, step = self._gallery.writer, trainer.progress.samples
        self._gallery.show(draw_histograms(trainer.model, title), "weight_histograms", None, step)
        layers = {name: values for name, values in magnitudes(trainer.model).items() if len(values)}
        for name, values in layers.items():
            writer.add_histogram(f"weight/magnitude/{name}", values, step)
        if layers:
            writer.add_histogram("weight/magnitude", torch.cat(list(layers.values())), step)

    def _weights(self, trainer: Trainer, title: str) -> None:
        images = weight_images(trainer.model, trainer.example_input)
        for name, pixels in images.items():
            self._gallery.writer.add_image(f"weight/{name}", pixels, trainer.progress.samples, dataformats="HWC")
        self._gallery.show(draw_weights(images, trainer.model, title), "weights", None, trainer.progress.samples)

    def _network(self, trainer: Trainer, title: str) -> None:
        layers = layers_of(trainer.model, trainer.example_input)
        figure = draw_network(layers, trainer.example_input, trainer.model, title)
        self._gallery.show(figure, "network", "network/visualisation", trainer.progress.samples)
        self._gallery.writer.add_text("architecture", table_of(layers, trainer.model), trainer.progress.samples)

    def _scores(self, trainer: Trainer) -> None:
        if len(self._curves) == self._drawn:
            return
        self._drawn = len(self._curves)

        def draw() -> None:
            figure = draw_scores(self._curves, self._title)
            self._gallery.show(figure, "weight_saliency", "track/weight_saliency", trainer.progress.samples)

        self._try(trainer, "scores", draw)

    def _confusion(self, trainer: Trainer, when: str, part: str) -> None:
        """Draw the counts of the last evaluation, or evaluate once more if the trainer has none."""
        loader = trainer.loaders.test if when == "after training" else trainer.loaders.val
        assert loader is not None
        table = trainer.confusion
        if table is None or int(table.sum()) != _samples(loader) or when == "before training":
            table = count_confusion(trainer.model, loader)
        figure = draw_confusion(table, trainer.loaders.class_names, part, f"{self._title}, {when}")
        self._gallery.show(figure, "network_confusion", "network/confusion", trainer.progress.samples)


def _samples(loader: BatchLoader) -> int:
    """Return the number of samples in a pass over an evaluation loader, whose batches may be limited."""
    return min(loader.num_samples, len(loader) * loader.batch_size)
