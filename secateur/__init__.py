"""Secateur: prune neural networks and measure the result.

Every public name is imported from here, and only when it is first used, so that `import secateur` loads no torch:

    >>> from secateur import build, prune
    >>> model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)

In a clone the folders `framework/`, `models/`, ... lie beside this one and in an installed package inside it; both
are imported as `secateur.framework`, `secateur.models`, ... What is not listed here is private.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

_ABOVE = Path(__file__).resolve().parent.parent
if (_ABOVE / "framework").is_dir() and (_ABOVE / "main.py").is_file():  # a clone, or the snapshot of a run
    __path__.append(str(_ABOVE))

if TYPE_CHECKING:
    from secateur.framework.api import PruneReport as PruneReport
    from secateur.framework.api import prune as prune
    from secateur.framework.compression.weight_sharing import SharedWeights as SharedWeights
    from secateur.framework.compression.weight_sharing import share_weights as share_weights
    from secateur.framework.network.layers import prunable_weights as prunable_weights
    from secateur.framework.network.lineage import same_network as same_network
    from secateur.framework.network.masks import Masks as Masks
    from secateur.framework.network.preserve import scoring as scoring
    from secateur.framework.plugins.registry import Registry as Registry
    from secateur.framework.plugins.registry import build as build
    from secateur.framework.plugins.registry import registry as registry
    from secateur.framework.pruning.adapters.base import Kept as Kept
    from secateur.framework.pruning.adapters.base import adapter as adapter
    from secateur.framework.pruning.channels.discovery import channel_groups as channel_groups
    from secateur.framework.pruning.channels.groups import ChannelGroup as ChannelGroup
    from secateur.framework.pruning.channels.groups import Groups as Groups
    from secateur.framework.pruning.scoring.channel_sums import channel_rows as channel_rows
    from secateur.framework.pruning.scoring.criterion import Batch as Batch
    from secateur.framework.pruning.scoring.criterion import Criterion as Criterion
    from secateur.framework.pruning.scoring.criterion import Data as Data
    from secateur.framework.pruning.scoring.criterion import LossFunction as LossFunction
    from secateur.framework.pruning.scoring.criterion import Scores as Scores
    from secateur.framework.pruning.scoring.gates.gate_criterion import ActivationCriterion as ActivationCriterion
    from secateur.framework.pruning.scoring.gates.gate_criterion import CurvatureCriterion as CurvatureCriterion
    from secateur.framework.pruning.scoring.gates.gate_criterion import GateCriterion as GateCriterion
    from secateur.framework.pruning.scoring.gradients import mean_gradients as mean_gradients
    from secateur.framework.pruning.scoring.input_features import input_columns as input_columns
    from secateur.framework.pruning.scoring.inputs import with_groups as with_groups
    from secateur.framework.pruning.scoring.templates import ChannelWeightCriterion as ChannelWeightCriterion
    from secateur.framework.pruning.scoring.templates import WeightCriterion as WeightCriterion
    from secateur.framework.pruning.selection.ranking import Keep as Keep
    from secateur.framework.pruning.selection.ranking import select as select
    from secateur.framework.pruning.surgery.cutting import cut as cut
    from secateur.framework.reporting.measure import measure as measure
    from secateur.framework.schedules.base import After as After
    from secateur.framework.schedules.base import Before as Before
    from secateur.framework.schedules.base import During as During
    from secateur.framework.schedules.base import Never as Never
    from secateur.framework.schedules.base import Rounds as Rounds
    from secateur.framework.schedules.base import Schedule as Schedule
    from secateur.framework.schedules.every_n_batches import Iterative as Iterative
    from secateur.framework.storage.checkpoint import load_model as load_model
    from secateur.framework.storage.checkpoint import save_model as save_model
    from secateur.framework.storage.compressed import save_compressed as save_compressed
    from secateur.framework.training.hooks import hookimpl as hookimpl
    from secateur.framework.training.loss import Loss as Loss
    from secateur.framework.training.tester import TestContext as TestContext
    from secateur.framework.training.tester import Tester as Tester
    from secateur.framework.training.trainer import Trainer as Trainer
    from secateur.framework.training.trainer import decay_groups as decay_groups
    from secateur.trainers.DefaultTrainer import DefaultTrainer as DefaultTrainer
    from secateur.utils.errors import RunError as RunError
    from secateur.utils.errors import UsageError as UsageError
    from secateur.utils.loading.dataset import DataSet as DataSet
    from secateur.utils.vision import torchvision as torchvision

__version__ = "0.1.0"

#: module below this package: the public names that it defines
_NAMES = {
    "framework.api": ("PruneReport", "prune"),
    "framework.compression.weight_sharing": ("SharedWeights", "share_weights"),
    "framework.network.layers": ("prunable_weights",),
    "framework.network.lineage": ("same_network",),
    "framework.network.masks": ("Masks",),
    "framework.network.preserve": ("scoring",),
    "framework.plugins.registry": ("Registry", "build", "registry"),
    "framework.pruning.adapters.base": ("Kept", "adapter"),
    "framework.pruning.channels.discovery": ("channel_groups",),
    "framework.pruning.channels.groups": ("ChannelGroup", "Groups"),
    "framework.pruning.scoring.channel_sums": ("channel_rows",),
    "framework.pruning.scoring.criterion": ("Batch", "Criterion", "Data", "LossFunction", "Scores"),
    "framework.pruning.scoring.gates.gate_criterion": (
        "ActivationCriterion",
        "CurvatureCriterion",
        "GateCriterion",
    ),
    "framework.pruning.scoring.gradients": ("mean_gradients",),
    "framework.pruning.scoring.input_features": ("input_columns",),
    "framework.pruning.scoring.inputs": ("with_groups",),
    "framework.pruning.scoring.templates": ("ChannelWeightCriterion", "WeightCriterion"),
    "framework.pruning.selection.ranking": ("Keep", "select"),
    "framework.pruning.surgery.cutting": ("cut",),
    "framework.reporting.measure": ("measure",),
    "framework.schedules.base": ("After", "Before", "During", "Never", "Rounds", "Schedule"),
    "framework.schedules.every_n_batches": ("Iterative",),
    "framework.storage.checkpoint": ("load_model", "save_model"),
    "framework.storage.compressed": ("save_compressed",),
    "framework.training.hooks": ("hookimpl",),
    "framework.training.loss": ("Loss",),
    "framework.training.tester": ("TestContext", "Tester"),
    "framework.training.trainer": ("Trainer", "decay_groups"),
    "trainers.DefaultTrainer": ("DefaultTrainer",),
    "utils.errors": ("RunError", "UsageError"),
    "utils.loading.dataset": ("DataSet",),
    "utils.vision": ("torchvision",),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
