"""The command oracle: load a network, measure the importance of its channels, and compare the criterions."""

import time
from typing import NamedTuple

from torch import Tensor, nn

from secateur.framework.commands import assemble
from secateur.framework.commands.failures import opened
from secateur.framework.plugins.registry import build, registry
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import Groups, free_groups
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction
from secateur.framework.pruning.steps.dry_run import try_criterion
from secateur.framework.reporting.console import Console
from secateur.framework.reporting.report import report_head
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.oracle_config import ALL_CRITERIONS, StudyConfig, chosen_criterions
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.studies.oracle.study import Study, judge, measure_oracle
from secateur.framework.studies.oracle.tables import head, left_out_lines, table
from secateur.framework.training.loss import Loss
from secateur.utils.errors import UsageError
from secateur.utils.files.atomic import write_json
from secateur.utils.loading.loaders import Loaders


def compare(config: StudyConfig, decisions: Decisions, command: str, console: Console) -> RunFolder:
    """Measure the importance of the channels, compare the criterions with it, and write the run folder."""
    config, model, batches, loss, groups, criterions, left_out = ready(config, decisions)
    with opened(config, decisions, command, console) as folder:
        study = carry_out(model, batches, loss, groups, criterions, console)
        study.left_out = left_out | study.left_out
        _report(config, folder, console, study)
    return folder


def plan(config: StudyConfig, decisions: Decisions) -> tuple[StudyConfig, Loss]:
    """Build and check the parts that need neither data nor a network."""
    return config, assemble.build_loss(config)


class Ready(NamedTuple):
    """The parts of a study that has passed all checks."""

    config: StudyConfig
    model: nn.Module
    batches: list[Batch]
    loss: Loss
    groups: Groups
    criterions: dict[str, Criterion]
    left_out: dict[str, str]


def ready(config: StudyConfig, decisions: Decisions) -> Ready:
    """Build and check data, network and criterions; writes nothing, but may download the data set."""
    config, loss = plan(config, decisions)
    loaders, config = assemble.build_loaders(config, decisions)
    loaders.check_balanced(config.samples)
    model = assemble.build_model(config, loaders)
    config = assemble.laid_out(config, decisions, loaders, model)
    # class-balanced training images without augmentation, which depend only on the seed
    batches = loaders.scoring_batches("balanced", batches=None, samples=config.samples,
                                      batch_size=config.batch_size, seed=config.seed, step=0)  # fmt: skip
    example = batches[0][0][:1]
    groups = removable(model, example, config)
    return Ready(config, model, batches, loss, groups, *usable(config, model, loaders, loss, groups, example))


def removable(model: nn.Module, example: Tensor, config: StudyConfig) -> Groups:
    """Return the channel groups of the network; raise UsageError if none can be removed."""
    groups = channel_groups(model, example, config.protect)
    if not free_groups(groups):
        reasons = sorted({str(group.protected) for group in groups.values()})
        raise UsageError(f"{config.model} has no channel that could be removed: {'; '.join(reasons)}")
    return groups


def usable(
    config: StudyConfig, model: nn.Module, loaders: Loaders, loss: LossFunction, groups: Groups, example: Tensor
) -> tuple[dict[str, Criterion], dict[str, str]]:
    """Return the criterions that can score the network, and the reasons for the excluded ones.

    Each is tested on two images, before anything is written.
    """
    names, left_out = chosen_criterions(config.criterions)
    criterions = {}
    for name in names:
        file = registry.file("criterions", name)
        try:
            criterion: Criterion = build("criterions", name)
            criterion.seed, criterion.example_input = config.seed, example
            criterion.check(model)
            try_criterion(criterion, file, model, loaders, loss, groups)
            with held_to_contract(criterion, "start", model):
                criterion.start(model)
        except UsageError as error:
            why = str(error).removeprefix(f"{file}: ")
            if not any(ALL_CRITERIONS in text.split(",") for text in config.criterions):
                raise UsageError(f"--criterions {name}: {why}") from error
            left_out[name] = why
        else:
            criterions[name] = criterion
    return criterions, dict(sorted(left_out.items()))


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
    facts = report_head(config)
    console.show(table(study, f"{facts['checkpoint']} on {config.data_set}"))
    for line in [*head(study), *left_out_lines(study)]:
        console.say(line)
    from secateur.framework.studies.oracle.plots import draw_study

    draw_study(folder.plots, study, f"{config.model} on {config.data_set}")
    results = study.results()
    results["seconds"]["pictures"] = time.perf_counter() - start
    facts |= {"batch_size": config.batch_size, "loss_function": config.loss}
    write_json(folder.oracle, facts | results)
