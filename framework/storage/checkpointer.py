"""A listener that saves checkpoints: last, best by validation accuracy, every n epochs, and after failures."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from secateur.framework.network.masks import Masks
from secateur.framework.storage.checkpoint import read_file, save_model
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.training.hooks import hookimpl

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class Checkpointer:
    """Write models/<Model>_<suffix>.safetensors during training.

    Suffixes: `last` before training and after every epoch; `best` for the best validation accuracy of the fully
    pruned network; `save_at_epoch_<e>` every `save_freq` epochs; `KILLED_at_epoch_<e>` after Ctrl-C;
    `CRASH_at_epoch_<e>` after an error. Networks with NaN or infinite values are never saved.
    """

    def __init__(self, folder: RunFolder, name: str, save_freq: int = 0) -> None:
        self._folder, self._name, self._save_freq = folder, name, save_freq
        self._best: float | None = None
        self._just_pruned = False

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Save the network before training."""
        self._save_if_finite(trainer, "last")
        self._just_pruned = False

    @hookimpl
    def pruned(self, trainer: Trainer) -> None:
        """Discard the best network so far, which was not fully pruned."""
        self._just_pruned, self._best = True, None

    @hookimpl(trylast=True)
    def batch_ended(self, trainer: Trainer) -> None:
        """Accept the metrics of this epoch: a pruning step between two batches precedes its evaluation."""
        self._just_pruned = False

    @hookimpl
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Save the network; ignore metrics that were measured before a pruning step at the end of the epoch."""
        self._save_if_finite(trainer, "last")
        if self._save_freq and (trainer.epoch + 1) % self._save_freq == 0:
            self._save_if_finite(trainer, f"save_at_epoch_{trainer.epoch}")
        accuracy = metrics.get("acc/val")
        better = accuracy is not None and (self._best is None or accuracy > self._best)
        if better and not self._just_pruned and self._save_if_finite(trainer, "best"):
            self._best = accuracy
        self._just_pruned = False

    @hookimpl
    def training_ended(self, trainer: Trainer) -> None:
        """Load the network of the best epoch by validation accuracy, which is tested and kept.

        Trainers whose network shrinks until the end keep the last one: the most accurate network would be an
        early, large one.
        """
        if self._best is None or not trainer.keeps_best:
            return
        tensors, _ = read_file(self._folder.checkpoint(self._name, "best"))
        trainer.model.load_state_dict({name: tensors[name] for name in trainer.model.state_dict()})
        Masks(trainer.model).apply()

    @hookimpl
    def run_failed(self, trainer: Trainer, error: BaseException) -> None:
        """Save the current network; errors in saving are ignored in favour of the error of the run."""
        kind = "KILLED" if isinstance(error, KeyboardInterrupt) else "CRASH"
        with contextlib.suppress(OSError):
            self._save_if_finite(trainer, f"{kind}_at_epoch_{trainer.epoch}")

    def _save_if_finite(self, trainer: Trainer, suffix: str) -> bool:
        network = trainer.network()
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
        if finite:
            save_model(network, self._folder.checkpoint(self._name, suffix))
        return finite
