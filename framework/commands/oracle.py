"""The command oracle: load a network, measure the importance of its channels, and compare the criterions."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.framework.commands import assemble
from secateur.framework.commands.failures import opened
from secateur.framework.commands.machine import prepare_machine
from secateur.framework.commands.oracle_criterions import ALL_CRITERIONS, chosen_criterions
from secateur.framework.network import memory_format
from secateur.framework.plugins.registry import build, registry
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction
from secateur.framework.pruning.steps.dry_run import try_criterion
from secateur.framework.reporting.console import Console
from secateur.framework.reporting.report import report_head
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.oracle_config import StudyConfig
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.studies.oracle.study import Study, judge, measure_oracle
from secateur.framework.studies.oracle.tables import head, left_out_lines, table
from secateur.utils.errors import UsageError
from secateur.utils.files.atomic import write_json
from secateur.utils.loading.loaders import Loaders


def run_study(config: StudyConfig, decisions: Decisions, command: str) -> Path:
    """Run a study and return its run folder; raise UsageError for bad input before anything is written."""
    console = Console(config.progress)
    try:
        folder = _study(prepare_machine(config, decisions), decisions, command, console)
        console.say(str(folder.path))
    finally:
        console.close()
    return folder.path


def _study(config: StudyConfig, decisions: Decisions, command: str, console: Console) -> RunFolder:
    loss = assemble.build_loss(config)
    loaders, config = assemble.build_loaders(config, decisions)
    loaders.check_balanced(config.samples)
    model = assemble.build_model(config, loaders)
    config = assemble.with_safe_format(config, decisions, model)
    layout = memory_format.MEMORY_FORMATS.get(config.memory_format, torch.contiguous_format)
    memory_format.lay_out(model, layout)
    loaders.train.memory_format = layout
    batches = images(loaders, config)
    example = batches[0][0][:1]
    groups = removable(model, example, config)
    trial = Trial(config, model, loaders, loss, groups, example)
    criterions, left_out = trial.usable()
    with opened(config, decisions, command, console) as folder:
        study = carry_out(model, batches, loss, groups, criterions, console)
        study.left_out = left_out | study.left_out
        _report(config, folder, console, study)
    return folder


def images(loaders: Loaders, config: StudyConfig) -> list[Batch]:
    """Return class-balanced training images without augmentation, which depend only on the seed."""
    return loaders.scoring_batches("balanced", batches=None, samples=config.samples, batch_size=config.batch_size,
                                   seed=config.seed, step=0)  # fmt: skip


def removable(model: nn.Module, example: Tensor, config: StudyConfig) -> Groups:
    """Return the channel groups of the network; raise UsageError if none can be removed."""
    groups = channel_groups(model, example, config.protect)
    if not free_groups(groups):
        reasons = sorted({str(group.protected) for group in groups.values()})
        raise UsageError(f"{config.model} has no channel that could be removed: {'; '.join(reasons)}")
    return groups


class Trial:
    """Builds the chosen criterions and tests each on two images, before anything is written."""

    def __init__(
        self, config: StudyConfig, model: nn.Module, loaders: Loaders, loss: LossFunction, groups: Groups,
        example: Tensor,
    ) -> None:  # fmt: skip
        self._given, self._seed = config.criterions, config.seed
        self._model, self._loaders, self._loss = model, loaders, loss
        self._groups, self._example = groups, example

    def usable(self) -> tuple[dict[str, Criterion], dict[str, str]]:
        """Return the criterions that can score the network, and the reasons for the excluded ones."""
        names, left_out = chosen_criterions(self._given)
        criterions = {}
        for name in names:
            try:
                criterions[name] = self._tried(name)
            except UsageError as error:
                if not any(ALL_CRITERIONS in text.split(",") for text in self._given):
                    raise UsageError(f"--criterions {name}: {error}") from error
                left_out[name] = str(error)
        return criterions, dict(sorted(left_out.items()))

    def _tried(self, name: str) -> Criterion:
        criterion: Criterion = build("criterions", name)
        criterion.seed, criterion.example_input = self._seed, self._example
        criterion.check(self._model)
        file = registry.file("criterions", name)
        try:
            try_criterion(criterion, file, self._model, self._loaders, self._loss, self._groups)
        except UsageError as error:
            raise UsageError(str(error).removeprefix(f"{file}: ")) from error
        with held_to_contract(criterion, "start", self._model):
            criterion.start(self._model)
        return criterion


def carry_out(
    model: nn.Module,
    batches: list[Batch],
    loss: LossFunction,
    groups: Groups,
    criterions: dict[str, Criterion],
    console: Console,
) -> Study:
    """Measure the oracle, then score with every criterion on the same batches; skip those that fail."""
    oracle = measure_oracle(model, batches, loss, groups, lambda given: console.track(given, "oracle", len(given)))
    study = Study(groups, oracle, {}, {})
    for name in console.track(list(criterions), "criterions", len(criterions)):
        try:
            study.judged[name] = judge(criterions[name], model, batches, loss, groups, oracle)
        except UsageError as error:
            study.left_out[name] = str(error)
    return study


def _report(config: StudyConfig, folder: RunFolder, console: Console, study: Study) -> None:
    start = time.perf_counter()
    checkpoint = f"{Path(str(config.checkpoint_name)).name}/{config.checkpoint_model}"
    console.show(table(study, f"{checkpoint} on {config.data_set}"))
    for line in [*head(study), *left_out_lines(study)]:
        console.say(line)
    from secateur.framework.studies.oracle.plots import draw_study

    draw_study(folder.plots, study, f"{config.model} on {config.data_set}")
    results = study.results()
    results["seconds"]["pictures"] = time.perf_counter() - start
    write_json(
        folder.oracle,
        {**report_head(config), "checkpoint": checkpoint, "batch_size": config.batch_size,
         "loss_function": config.loss, **results},
    )  # fmt: skip
