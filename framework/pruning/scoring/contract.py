"""A criterion's methods under the contract: afterwards the model and torch's settings are as before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from secateur.framework.network.model_state import Changes, ModelState, described
from secateur.framework.network.preserve import random_numbers_as_before
from secateur.framework.network.process_state import ProcessState
from secateur.framework.plugins.faults import contained
from secateur.framework.plugins.registry import FOLDERS, ROOT
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.utils.errors import UsageError

_SHIPPED = (ROOT / FOLDERS["criterions"], ROOT / "framework")


def is_shipped(criterion: Criterion) -> bool:
    """Whether every class of the criterion is from a file of Secateur, and no method of it was replaced."""
    if any(callable(getattr(Criterion, name, None)) for name in vars(criterion)):
        return False
    classes = type(criterion).__mro__
    return all(_is_ours(cls) for cls in classes[: classes.index(Criterion)])


@contextmanager
def held_to_contract(
    criterion: Criterion, method: str, model: nn.Module, *, always: bool = False
) -> Iterator[None]:
    """Call `method` of the criterion inside. SystemExit and the like become a RunError.

    For a criterion that is not shipped, or with `always`, everything of the model and of the process that the
    method changed is restored, also after an error, and a UsageError names it: such scores are those of another
    model. Random numbers may be drawn; their states are restored.
    """
    who = f"{type(criterion).__name__}.{method}"
    inherited = getattr(type(criterion), method) is getattr(Criterion, method) and method not in vars(criterion)
    if inherited or not always and is_shipped(criterion):
        with contained(who):
            yield
        return
    changes: Changes = {}
    model_state, process_state = ModelState(model), ProcessState()
    try:
        with random_numbers_as_before(), contained(who):
            yield
    finally:
        changes |= dict.fromkeys(process_state.restore(), [])
        changes |= model_state.restore(criterion.example_input)
    if changes:
        raise UsageError(
            f"{who} changed {described(changes)}: it must leave the model and torch's settings as they are (they "
            "were restored); `with scoring(model):` sees to modes, flags, buffers and gradients"
        )


def _is_ours(cls: type) -> bool:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return file is not None and any(Path(file).is_relative_to(folder) for folder in _SHIPPED)
