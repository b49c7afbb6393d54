"""Trial run of a criterion on a few samples before a run writes any file."""

import copy
from pathlib import Path

import torch
from torch import nn

from secateur.framework.plugins.faults import ends_process, plugin_file
from secateur.framework.plugins.old_imports import old_import
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Criterion, LossFunction, check_scores
from secateur.framework.pruning.steps.step import step_class
from secateur.utils.errors import RunError, UsageError
from secateur.utils.loading.loaders import Loaders
from secateur.utils.suggest import one_line


def try_criterion(
    criterion: Criterion, file: Path, model: nn.Module, loaders: Loaders, loss: LossFunction, groups: Groups
) -> None:
    """Raise UsageError, with the plug-in's file, if the criterion's scores break the contract or it raises.

    `groups` are the model's channel groups. A copy of the criterion is used, so that the run's own has no state
    yet.
    """
    try:
        criterion = copy.deepcopy(criterion)
        data = criterion.data
        given = [amount for amount in (data.batches, data.samples, data.per_class) if amount is not None]
        if data.kind != "none" and (len(given) != 1 or data.per_class and data.kind != "balanced"):
            raise UsageError(f"{data} must set exactly one of batches and samples, or per_class for balanced data")
        samples = None if data.kind == "balanced" else 2
        batches = loaders.scoring_batches(
            data.kind, batches=None, samples=samples, per_class=2, batch_size=4, seed=0, step=0
        )
        with held_to_contract(criterion, "start", model, always=True):
            criterion.start(model)
        if criterion.uses_initial_weights:
            model = _moved(model)  # at the initial weights all scores would be zero
        free = step_class(criterion).scored(groups)
        with held_to_contract(criterion, "score", model, always=True):
            check_scores(criterion.score(model, batches, loss, free), model, groups, criterion)
    except (UsageError, RunError) as error:
        if error.__cause__ is not None and ends_process(error.__cause__):
            raise  # not a bad argument: the plug-in ended the run
        culprit = str(plugin_file(error) or file)
        raise UsageError(str(error) if culprit in str(error) else f"{culprit}: {error}") from error
    except Exception as error:  # raised by the criterion, or by the loss or the model that it calls
        raise UsageError(
            f"{plugin_file(error) or file}: {criterion.name}.score fails: "
            f"{old_import(error) or one_line(f'{type(error).__name__}: {error}')}"
        ) from error


@torch.no_grad()
def _moved(model: nn.Module) -> nn.Module:
    """Return a copy with slightly larger weights."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.mul_(1.001)
    return twin
