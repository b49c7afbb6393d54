"""The command that trains: prune and train a network, and write its run folder."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secateur.framework.commands import assemble
from secateur.framework.commands.dense_baseline import dense_config, known_dense_accuracy
from secateur.framework.commands.failures import opened
from secateur.framework.commands.plan import plan_pruning, with_frequency
from secateur.framework.network import memory_format
from secateur.framework.network.lineage import was_pruned
from secateur.framework.plugins.registry import build, registry
from secateur.framework.pruning.steps.dry_run import try_criterion
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.pruning.steps.rewinding import Rewinder
from secateur.framework.reporting.console import Console
from secateur.framework.reporting.recorder import Recorder
from secateur.framework.reporting.report import make_report, report_table
from secateur.framework.schedules.base import BEFORE_TRAINING
from secateur.framework.settings.decisions import FOUND, IMPLIED, MEASURED, Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.checkpoint import save_model
from secateur.framework.storage.checkpointer import Checkpointer
from secateur.framework.storage.run_folder import FINISHED, RunFolder
from secateur.framework.training.hooks import hookimpl, manager
from secateur.framework.training.listeners import Accuracies, WeightTracker
from secateur.framework.training.loss import Loss
from secateur.framework.training.trainer import Parts, Settings, Trainer
from secateur.utils.errors import UsageError
from secateur.utils.files.atomic import write_json
from secateur.utils.loading.loaders import Loaders


def train(config: RunConfig, decisions: Decisions, command: str, console: Console) -> RunFolder:
    """Prune and train a network, and compare it with the dense one."""
    config, pruner, loaders, model, example = ready(config, decisions)
    config = _with_memory_format(config, decisions, model, example)
    trainer = build_trainer(config, model, loaders, pruner.plan)
    # before anything is written or trained, since files of other runs are not trusted
    compared = config.prunes
    known = known_dense_accuracy(config, decisions) if not config.train_dense and compared else None
    with opened(config, decisions, command, console) as folder:
        dense_accuracy = _train_dense(config, folder, console) if config.train_dense and compared else known
        run = Training(folder, config, decisions)
        console.show(report_table(train_in(run, trainer, pruner, console, dense_accuracy)))
    return folder


def plan(config: RunConfig, decisions: Decisions) -> tuple[RunConfig, Pruner, Loss]:
    """Make and check all choices that need neither data nor a network."""
    config = assemble.with_fused(config, decisions)
    assemble.try_optimizer(config)
    pruner, config = plan_pruning(config, decisions, assemble.build_criterion(config))
    return config, pruner, assemble.build_loss(config)


class Ready(NamedTuple):
    """The parts of a training run that has passed all checks."""

    config: RunConfig
    pruner: Pruner
    loaders: Loaders
    model: nn.Module
    example: Tensor


def ready(config: RunConfig, decisions: Decisions) -> Ready:
    """Build and check data, network and pruning; neither trains nor writes, but may download the data set."""
    config, pruner, loss = plan(config, decisions)  # first, since it is quick
    criterion = pruner.criterion
    loaders, config = assemble.build_loaders(config, decisions)
    if config.eval_freq and loaders.val is None:
        decisions.notes.append("no validation images (--val_share 0): --eval_freq has no effect")
    config = with_frequency(config, decisions, pruner, loaders)
    model = assemble.build_model(config, loaders)
    example = loaders.scoring_batches("random", batches=1, samples=None, batch_size=1, seed=0, step=0)[0][0]
    _check_dense(config, model)
    _check_single_samples(config, loaders, model, example)
    model = assemble.prepare_model(config, model, loaders)
    pruner.prepare(model, example)
    if pruner.plan and criterion.data.kind == "balanced" and criterion.data.samples is not None:
        loaders.check_balanced(criterion.data.samples)
    if pruner.plan:  # built-in ones too: users may add files to criterions/
        file = registry.file("criterions", config.prune_criterion)
        try_criterion(criterion, file, model, loaders, loss, pruner.groups)
    return Ready(config, pruner, loaders, model, example)


class Training(NamedTuple):
    """What a training run writes, and from which settings."""

    folder: RunFolder
    config: RunConfig
    decisions: Decisions


def _with_memory_format(config: RunConfig, decisions: Decisions, model: nn.Module, example: Tensor) -> RunConfig:
    """Return the settings with the measured memory format, unless it is given or would be unsafe."""
    given = config.memory_format
    if "memory_format" in decisions.given and given != "auto" and config.train_memory_format == "auto":
        config = decisions.choose(config, IMPLIED, "--memory_format", train_memory_format=given)
    if given == "auto":
        source, why, fastest = _fastest_format(model, example)
        config = decisions.choose(config, source, why, memory_format=fastest)
    return assemble.with_safe_format(config, decisions, model)


def build_trainer(
    config: RunConfig, model: nn.Module, loaders: Loaders, plan: Mapping[int, Sequence[float]] | None = None
) -> Trainer:
    """Build the trainer with all parts except the listeners; `plan` maps moments of pruning to targets."""
    optimizer = assemble.build_optimizer(config, model)
    parts = Parts(
        model, assemble.build_loss(config), optimizer, loaders, assemble.build_lr_schedule(config, optimizer)
    )
    layout = memory_format.MEMORY_FORMATS[config.memory_format]
    settings = Settings(**config.options("loop"), memory_format=layout, plan=plan or {})
    trainer: Trainer = build("trainers", config.train_scheme, parts=parts, settings=settings,
                             **assemble.trainer_options(config))  # fmt: skip
    trainer.loss.prepare(trainer.model, trainer.example_input)
    return trainer


def train_in(
    run: Training, trainer: Trainer, pruner: Pruner, console: Console, dense_accuracy: float | None
) -> dict[str, Any]:
    """Train with all listeners, test once, write all files of the folder, and return the report."""
    # these import matplotlib, which refused runs do not need
    from secateur.framework.reporting.plots.run import Pictures, draw_all

    folder, config = run.folder, run.config
    recorder = Recorder(folder, console)
    pictures = Pictures(config, folder.plots, recorder.writer) if config.plot_weights_freq else None
    tracker = WeightTracker() if config.track_weights else None
    accuracies = Accuracies() if config.track_stats else None
    optional = [part for part in (pictures, tracker, accuracies) if part is not None]
    layout = Layout(run, bool(pruner.plan.get(BEFORE_TRAINING)))
    saver = Checkpointer(folder, config.model, config.save_freq)
    rewinder = [Rewinder(config.rewind_to)] if config.enable_rewinding and pruner.plan else []
    others = [*optional, *assemble.listeners(config), *rewinder]
    trainer.hooks = manager([recorder, *others, pruner, layout, saver], installed=True).hook
    trainer.track = console.track
    assemble.seed_everything(config.seed)
    try:
        if pictures is not None:  # outside of the measured time
            pictures.before(trainer)
        start = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - start
        if trainer.progress.stopped is not None:
            console.say(f"stopped: {trainer.progress.stopped}")
        test = trainer.evaluate(trainer.loaders.test)
        recorder.write(trainer, {f"{key}/test": value for key, value in test.items()})
        save_model(trainer.model, folder.checkpoint(config.model, FINISHED))
        results: dict[str, Any] = {} if accuracies is None else {"statistics": accuracies.statistics}
        if pictures is not None:
            pictures.after(trainer)
        if tracker is not None:
            tracker.save(folder.tracked)
            results["tracked_weights"] = tracker.summary()
            if pictures is not None:
                pictures.tracked(trainer, results["tracked_weights"])
    finally:
        recorder.close()
    if not config.prunes and not was_pruned(trainer.model):
        dense_accuracy = test["acc"]  # of the dense network
    last, counted = pruner.events[-1] if pruner.events else None, getattr(pruner.schedule, "counted", False)
    report = make_report(trainer, config, test["acc"], dense_accuracy, seconds, last, counted) | results
    title = f"{config.model} on {config.data_set}, {config.prune_criterion}"
    draw_all(folder.plots, recorder.epochs, trainer.model, pruner.events, title)
    write_json(folder.report, report)  # last, since a folder with a report is a finished run
    return report


def _fastest_format(model: nn.Module, example: Tensor) -> tuple[str, str, str]:
    """Return the source, the reason and the name of the memory format to train a network in."""
    fastest, unmeasured = memory_format.memory_format(model, example)
    return (FOUND, unmeasured, fastest) if unmeasured else (MEASURED, "the faster one", fastest)


class Layout:
    """A listener that chooses the memory format after pruning before training.

    Small networks may train faster in another memory format than the dense network.
    """

    def __init__(self, run: Training, pruned_before: bool) -> None:
        self._run, self._pruned_before = run, pruned_before

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Choose the memory format, and record it in config.yaml so that the run can be repeated."""
        folder, config, decisions = self._run
        if config.train_memory_format == "auto":
            source, why, fastest = IMPLIED, "as before pruning", config.memory_format
            if self._pruned_before:
                source, why, fastest = _fastest_format(trainer.model, trainer.example_input)
            config = decisions.choose(config, source, why, train_memory_format=fastest)
            folder.write_settings(config, decisions)
        trainer.use_memory_format(memory_format.MEMORY_FORMATS[config.train_memory_format])


def _check_dense(config: RunConfig, model: nn.Module) -> None:
    """Raise UsageError if --train_dense would start from a pruned network."""
    if config.train_dense and was_pruned(model):
        start = config.checkpoint_name or config.pretrained
        raise UsageError(f"--train_dense: {start} is already pruned, a dense network cannot be trained from it")


def _check_single_samples(config: RunConfig, loaders: Loaders, model: nn.Module, example: Tensor) -> None:
    """Raise UsageError for batches of one sample if a norm layer needs more than one value."""
    if min(config.batch_size, loaders.train.num_samples) > 1 or config.epochs == 0:
        return
    try:
        with torch.no_grad():
            copy.deepcopy(model).train()(example)
    except ValueError as error:
        raise UsageError(f"{config.model} cannot be trained on batches of a single sample: {error}") from error


def _train_dense(config: RunConfig, folder: RunFolder, console: Console) -> float:
    """Train the dense network with the same settings in dense/ of the run folder; return its accuracy."""
    console.say("training the dense network")
    dense, decisions = replace(dense_config(config), train_memory_format=config.memory_format), Decisions()
    inner = RunFolder(folder.path / "dense")
    inner.make_places()
    loaders, dense = assemble.build_loaders(dense, decisions)
    trainer = build_trainer(dense, assemble.build_model(dense, loaders), loaders)
    pruner = Pruner(build("criterions", dense.prune_criterion), {})
    report = train_in(Training(inner, dense, decisions), trainer, pruner, console, None)
    accuracy: float = report["pruned"]["accuracy"]
    console.say(f"the dense network reaches {accuracy:.4f}; now the pruned one")
    return accuracy
