"""The listener that saves: `last`, `best` by validation, `finished`, every n epochs, and when a run breaks off."""

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
    """Writes models/<Model>_<suffix>.safetensors.

    `last` before training and after every epoch; `best` after the epochs of the fully pruned network, by accuracy
    on the validation set; `save_at_epoch_<e>` every `save_freq` epochs; `KILLED_at_epoch_<e>` after Ctrl-C,
    `CRASH_at_epoch_<e>` after an error. A network with a number that is not finite is never saved.
    """

    def __init__(self, folder: RunFolder, name: str, save_freq: int = 0) -> None:
        self._folder, self._name, self._save_freq = folder, name, save_freq
        self._best: float | None = None
        self._just_pruned = False

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """The network as it goes into training."""
        self._save_if_finite(trainer, "last")
        self._just_pruned = False

    @hookimpl
    def pruned(self, trainer: Trainer) -> None:
        """A network before its last pruning is no candidate for the best."""
        self._just_pruned, self._best = True, None

    @hookimpl(trylast=True)
    def batch_ended(self, trainer: Trainer) -> None:
        """A pruning between two batches comes before the epoch's metrics: they are of the network as it is."""
        self._just_pruned = False

    @hookimpl
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Save; where this epoch's end has pruned, its metrics were of another network."""
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
        """Go back to the best epoch: the validation set picks the network that is tested and kept.

        Not so with a trainer whose network goes on shrinking: the best by accuracy would be one of the first.
        """
        if self._best is None or not trainer.keeps_best:
            return
        tensors, header = read_file(self._folder.checkpoint(self._name, "best"))
        state = trainer.model.state_dict()
        aliases = header["aliases"]
        trainer.model.load_state_dict({name: tensors[aliases.get(name, name)] for name in state})
        Masks(trainer.model).apply()

    @hookimpl
    def run_failed(self, trainer: Trainer, error: BaseException) -> None:
        """Keep what there is; the error that is on its way matters more than one in saving."""
        kind = "KILLED" if isinstance(error, KeyboardInterrupt) else "CRASH"
        with contextlib.suppress(OSError):
            self._save_if_finite(trainer, f"{kind}_at_epoch_{trainer.epoch}")

    def _save_if_finite(self, trainer: Trainer, suffix: str) -> bool:
        network = trainer.network()
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
        if finite:
            save_model(network, self._folder.checkpoint(self._name, suffix))
        return finite
