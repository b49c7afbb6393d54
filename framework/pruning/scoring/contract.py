"""Enforcement of the criterion contract: its methods leave the model and torch's settings unchanged."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from secateur.framework.network.model_state import Changes, ModelState, described
from secateur.framework.network.preserve import random_numbers_as_before
from secateur.framework.plugins.faults import contained
from secateur.framework.plugins.registry import FOLDERS, ROOT
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.scoring.process_state import ProcessState
from secateur.utils.errors import UsageError

_SHIPPED = (ROOT / FOLDERS["criterions"], ROOT / "framework")


def is_shipped(criterion: Criterion) -> bool:
    """Whether all classes of the criterion are defined by Secateur and none of its methods is replaced."""
    if any(callable(getattr(Criterion, name, None)) for name in vars(criterion)):
        return False
    classes = type(criterion).__mro__
    return all(_is_ours(cls) for cls in classes[: classes.index(Criterion)])


@contextmanager
def held_to_contract(
    criterion: Criterion, method: str, model: nn.Module, *, always: bool = False
) -> Iterator[None]:
    """Context manager for a call of `method` of the criterion; SystemExit and the like become a RunError.

    For third-party criterions, or with `always`, changes of the model and of the process are restored, also after
    an exception, and reported by a UsageError, since the scores would be those of another model. Random numbers
    may be drawn; the states of the generators are restored.
    """
    who = f"{criterion.name}.{method}"
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
            f"{who} changed {described(changes)}: it must leave the model and torch's settings unchanged (they "
            "were restored); use `with scoring(model):`, which preserves modes, flags, buffers and gradients"
        )


def _is_ours(cls: type) -> bool:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return file is not None and any(Path(file).is_relative_to(folder) for folder in _SHIPPED)
