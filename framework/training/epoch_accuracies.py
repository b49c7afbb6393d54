"""The listener that notes training and test accuracy of every epoch, by the phases of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.framework.training.hooks import hookimpl

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer

#: the phases by the names they have in the statistics
NAMES = {"warmup": "warmup", "pruning": "pruning_and_training", "final": "final_training"}


class Accuracies:
    """`--track_stats`: accuracies in percent, of each epoch before any pruning at its end.

    train: counted while training. test: on the test set, which nothing is chosen by.
    """

    def __init__(self) -> None:
        #: phase -> train or test -> one number an epoch
        self.statistics: dict[str, dict[str, list[float]]] = {
            name: {"train": [], "test": []} for name in NAMES.values()
        }

    @hookimpl
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Test the network as this epoch has left it."""
        shown = trainer.confusion  # that of the validation images is what others look at
        test = trainer.evaluate(trainer.loaders.test)
        trainer.confusion = shown
        found = self.statistics[NAMES[trainer.progress.phase]]
        found["train"].append(100 * metrics["acc/train"])
        found["test"].append(100 * test["acc"])
