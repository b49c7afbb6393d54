"""The pluggy hook specifications of a run, and the manager that calls the listeners.

A listener is any object with methods that are marked `@hookimpl` and named like a hook below; a method may take
fewer arguments than the specification. The training loop only calls hooks and is independent of the listeners.
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
#: Decorator that marks a method as the implementation of the hook of the same name, see `HookSpecs`:
#:
#:     class Progress:
#:         @hookimpl
#:         def epoch_ended(self, trainer, metrics):
#:             print(trainer.epoch, metrics["acc/train"])
#:
#: Options: `@hookimpl(tryfirst=True)` and `@hookimpl(trylast=True)` call it before or after the other listeners.
hookimpl = pluggy.HookimplMarker(NAME)


class HookSpecs:
    """Specifications of all hooks, in the order in which a run calls them."""

    @hookspec
    def plugin_folders(self) -> Iterable[str | Path]:
        """Return plug-ins folders of an installed package; called once for each `secateur` entry point."""
        raise NotImplementedError

    @hookspec
    def run_started(self, trainer: Trainer) -> None:
        """Called before the first epoch, with all tensors on the device. Pruning before training happens here."""

    @hookspec
    def epoch_started(self, trainer: Trainer) -> None:
        """Called before the first batch of `trainer.epoch` (0-based)."""

    @hookspec
    def gradients_ready(self, trainer: Trainer) -> None:
        """Called after each backward pass, before gradient clipping and the optimizer step."""

    @hookspec
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Called after each optimizer step; `loss` is a detached scalar on the device."""

    @hookspec
    def evaluated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Called after an evaluation within an epoch (`--eval_freq`)."""

    @hookspec
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Called after an epoch and its evaluation. Pruning during training happens here."""

    @hookspec
    def pruned(self, trainer: Trainer, event: PruneEvent) -> None:
        """Called after every pruning step; one moment may have several steps."""

    @hookspec
    def moment_ended(self, trainer: Trainer) -> None:
        """Called after the last pruning step of a moment, when the weights may be changed again."""

    @hookspec
    def rewound(self, trainer: Trainer, to_epoch: int) -> None:
        """Called after the weights were reset to those after `to_epoch` epochs; the network remains pruned."""

    @hookspec
    def warned(self, trainer: Trainer, message: str) -> None:
        """Called with a warning for the user that does not stop the run."""

    @hookspec
    def training_ended(self, trainer: Trainer) -> None:
        """Called after the last epoch, before the final evaluation on the test set."""

    @hookspec
    def run_failed(self, trainer: Trainer, error: BaseException) -> None:
        """Called when training stops with an error or Ctrl-C, before the error is raised again."""


def manager(listeners: Iterable[Any] = (), installed: bool = False) -> pluggy.PluginManager:
    """Return a plugin manager that calls the listeners of each hook in the given order.

    `installed` adds the packages that declare a `secateur` entry point. A method with an argument that its hook
    specification lacks is refused by pluggy. Raises UsageError, naming the package, if an installed package
    cannot be loaded.
    """
    hooks = pluggy.PluginManager(NAME)
    hooks.add_hookspecs(HookSpecs)
    if installed:
        for entry in entry_points(group=NAME):
            with _blaming(entry):
                hooks.register(entry.load(), name=entry.name)
    for listener in reversed(list(listeners)):  # pluggy calls the last registered first
        hooks.register(listener)
    return hooks


def installed_folders() -> list[tuple[str, Path]]:
    """Return (package, folder) for each plug-ins folder of an installed package.

    Raises UsageError, naming the package, if it cannot be loaded or violates the specification.
    """
    folders_of = []
    for entry in entry_points(group=NAME):
        with _blaming(entry):
            for folders in manager([entry.load()]).hook.plugin_folders():
                if isinstance(folders, str | Path):  # a single folder instead of a list
                    folders = [folders]
                folders_of += [(_package(entry), Path(folder)) for folder in folders]
    return folders_of


@contextmanager
def _blaming(entry: EntryPoint) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # a third-party module may raise anything when it is imported
        if not isinstance(error, Exception) and not ends_process(error):
            raise  # Ctrl-C
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UsageError(f"installed package {_package(entry)} ({entry.value}) is broken: {reason}") from error


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.name
