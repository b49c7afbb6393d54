"""What a listener may hear: the pluggy hook specifications, and the manager that calls the listeners.

A listener is any object with methods marked `@hookimpl` and named as below; it may take fewer arguments than
the specification. The training loop calls the hooks and knows none of the listeners.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from secateur.framework.plugins.faults import ends_process
from secateur.utils.errors import UsageError
from secateur.utils.suggest import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.framework.training.events import PruneEvent
    from secateur.framework.training.trainer import Trainer

NAME = "secateur"
hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)


class HookSpecs:
    """Every hook, in the order in which a run calls them."""

    @hookspec
    def plugin_folders(self) -> Iterable[str | Path]:
        """Folders laid out like a plug-ins folder; called once on every installed `secateur` entry point."""
        raise NotImplementedError

    @hookspec
    def run_started(self, trainer: Trainer) -> None:
        """Before the first epoch, with everything on its device. Pruning before training happens here."""

    @hookspec
    def epoch_started(self, trainer: Trainer) -> None:
        """Before the first batch of `trainer.epoch` (0-based)."""

    @hookspec
    def gradients_ready(self, trainer: Trainer) -> None:
        """After each backward pass, before clipping and the optimizer's step."""

    @hookspec
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """After each optimizer step; `loss` is a detached scalar on the device (reading it may wait)."""

    @hookspec
    def evaluated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After an evaluation within an epoch (`--eval_freq`)."""

    @hookspec
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After an epoch and its evaluation. Pruning during training happens here."""

    @hookspec
    def pruned(self, trainer: Trainer, event: PruneEvent) -> None:
        """After every pruning step; there may be several at one moment."""

    @hookspec
    def moment_ended(self, trainer: Trainer) -> None:
        """After the last pruning step of a moment: what changes the weights waits until all were scored."""

    @hookspec
    def rewound(self, trainer: Trainer, to_epoch: int) -> None:
        """After the network went back to its state after `to_epoch` epochs (0: the initial one), pruned as now."""

    @hookspec
    def warned(self, trainer: Trainer, message: str) -> None:
        """Something the user should know that does not stop the run."""

    @hookspec
    def training_ended(self, trainer: Trainer) -> None:
        """After the last epoch, before the final evaluation on the test set."""

    @hookspec
    def run_failed(self, trainer: Trainer, error: BaseException) -> None:
        """When training stops with an error or Ctrl-C; the error goes on afterwards."""


def manager(listeners: Iterable[Any] = (), installed: bool = False) -> pluggy.PluginManager:
    """A plugin manager whose listeners hear each hook in the order given.

    `installed` adds the packages that declare a `secateur` entry point. A listener whose method takes an
    argument that the specification lacks is refused by name. Raises UsageError, naming the package, when an
    installed one cannot be loaded.
    """
    found = pluggy.PluginManager(NAME)
    found.add_hookspecs(HookSpecs)
    if installed:
        for entry in entry_points(group=NAME):
            with _blaming(entry):
                found.register(entry.load(), name=entry.name)
    for listener in reversed(list(listeners)):  # pluggy calls the last registered first
        found.register(listener)
    return found


def installed_folders() -> list[tuple[str, Path]]:
    """(package, folder) for each plug-ins folder of an installed package.

    Raises UsageError, naming the package, when it cannot be loaded or breaks the specification.
    """
    found = []
    for entry in entry_points(group=NAME):
        with _blaming(entry):
            single = pluggy.PluginManager(NAME)
            single.add_hookspecs(HookSpecs)
            single.register(entry.load())
            for folders in single.hook.plugin_folders():
                if isinstance(folders, str | Path):  # one folder instead of a list of them
                    folders = [folders]
                found += [(_package(entry), Path(folder)) for folder in folders]
    return found


@contextmanager
def _blaming(entry: EntryPoint) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # a third-party module may raise anything when it is imported
        if not isinstance(error, Exception) and not ends_process(error):
            raise  # Ctrl-C
        why = one_line(f"{type(error).__name__}: {error}")
        raise UsageError(f"installed package {_package(entry)} ({entry.value}) is broken: {why}") from error


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.name
