"""The machinery of Secateur. Its public names are imported when they are first used, torch with them.

`framework/registry.py` would hide the public object `registry`, so it is `framework/plugins.py`: no module
bears the name of a public function or object.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.api import PruneReport as PruneReport
    from framework.api import prune as prune
    from framework.checkpoint import load_model as load_model
    from framework.checkpoint import save_model as save_model
    from framework.criterion import Criterion as Criterion
    from framework.criterion import Data as Data
    from framework.criterion import Scores as Scores
    from framework.hooks import hookimpl as hookimpl
    from framework.iterative import Iterative as Iterative
    from framework.loss import Loss as Loss
    from framework.measures import measure as measure
    from framework.plugins import Registry as Registry
    from framework.plugins import build as build
    from framework.plugins import registry as registry
    from framework.pruning.adapters import Kept as Kept
    from framework.pruning.adapters import adapter as adapter
    from framework.pruning.channels import ChannelGroup as ChannelGroup
    from framework.pruning.channels import channel_groups as channel_groups
    from framework.pruning.cutting import cut as cut
    from framework.pruning.masks import Masks as Masks
    from framework.pruning.selection import Keep as Keep
    from framework.pruning.selection import select as select
    from framework.rounds import Rounds as Rounds
    from framework.schedule import After as After
    from framework.schedule import Before as Before
    from framework.schedule import During as During
    from framework.schedule import Never as Never
    from framework.schedule import Schedule as Schedule
    from framework.tester import Tester as Tester
    from framework.trainer import Trainer as Trainer

__version__ = "0.1.0"

_HOME = {
    "After": "schedule",
    "Before": "schedule",
    "ChannelGroup": "pruning.channels",
    "Criterion": "criterion",
    "Data": "criterion",
    "During": "schedule",
    "Iterative": "iterative",
    "Keep": "pruning.selection",
    "Kept": "pruning.adapters",
    "Loss": "loss",
    "Masks": "pruning.masks",
    "Never": "schedule",
    "PruneReport": "api",
    "Registry": "plugins",
    "Rounds": "rounds",
    "Schedule": "schedule",
    "Scores": "criterion",
    "Tester": "tester",
    "Trainer": "trainer",
    "adapter": "pruning.adapters",
    "build": "plugins",
    "channel_groups": "pruning.channels",
    "cut": "pruning.cutting",
    "hookimpl": "hooks",
    "load_model": "checkpoint",
    "measure": "measures",
    "prune": "api",
    "registry": "plugins",
    "save_model": "checkpoint",
    "select": "pruning.selection",
}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'framework' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"framework.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
