"""A listener that records the training and test accuracy of every epoch, by the phases of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.framework.training.hooks import hookimpl

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer

#: phase of a run -> its name in the statistics
NAMES = {"warmup": "warmup", "pruning": "pruning_and_training", "final": "final_training"}


class Accuracies:
    """Accuracies in percent of each epoch, before any pruning at its end (`--track_stats`).

    train: running accuracy during training. test: accuracy on the test set, which no decision depends on.
    """

    def __init__(self) -> None:
        #: phase -> "train" or "test" -> one number per epoch
        self.statistics: dict[str, dict[str, list[float]]] = {
            name: {"train": [], "test": []} for name in NAMES.values()
        }

    @hookimpl
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Test the network at the end of the epoch."""
        shown = trainer.confusion  # other listeners read the confusion matrix of the validation images
        test = trainer.evaluate(trainer.loaders.test)
        trainer.confusion = shown
        accuracies = self.statistics[NAMES[trainer.progress.phase]]
        accuracies["train"].append(100 * metrics["acc/train"])
        accuracies["test"].append(100 * test["acc"])
