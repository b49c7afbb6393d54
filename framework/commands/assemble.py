"""Construction of the parts of a run from a checked config; "auto" values are resolved in the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.framework.commands.machine import seed_everything
from secateur.framework.commands.optimizer_options import optimizer_options
from secateur.framework.network.memory_format import MEMORY_FORMATS, fast_multiple, usable_format
from secateur.framework.plugins.registry import build, check_options, option_default, option_names, registry
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.scoring.weighted import weighted
from secateur.framework.pruning.selection.options import PruneOptions
from secateur.framework.pruning.selection.targets import target_class
from secateur.framework.pruning.steps.averages import Tracking
from secateur.framework.pruning.steps.pruner import Pruner, pruner_for
from secateur.framework.pruning.steps.rewinding import check_rewinding
from secateur.framework.schedules.base import BEFORE_TRAINING, Never, Schedule
from secateur.framework.schedules.every_n_batches import Iterative
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.settings.schedule_flags import check_moments, schedule_of, write_back
from secateur.framework.settings.unused_flags import unused_flags, unused_modes
from secateur.framework.storage.checkpoint import is_ours, load_model, read_file
from secateur.framework.storage.precision import check_finite
from secateur.framework.storage.pretrained import load_tensors
from secateur.framework.training.group_decay import GroupDecay
from secateur.framework.training.loss import Loss
from secateur.framework.training.pruning_lr import PruningRate
from secateur.framework.training.trainer import Trainer
from secateur.utils.errors import UsageError
from secateur.utils.files.formats import SUFFIX, is_safetensors
from secateur.utils.loading.loaders import Loaders, make_loaders
from secateur.utils.memory import check_memory

#: options of models above this value may exceed the memory
LARGE_OPTION = 2048
#: flags that set options of the loss, if it has them
LOSS_FLAGS = ("l1_reg", "lp_reg", "label_smoothing", "hoyer_reg")


def build_loaders(config: RunConfig) -> Loaders:
    """Build the loaders of the data set; set the image size and the number of classes in the config."""
    try:
        loaders = _make_loaders(config)
    except OSError as error:  # such as an unreadable folder
        raise UsageError(f"{config.data_set}: {error.filename or config.data_dir}: {error.strerror}") from error
    config.notes += loaders.remarks
    size = loaders.in_channels, loaders.image_size, loaders.image_size
    if config.input_dim and config.input_dim != size:
        given, actual = (",".join(map(str, shape)) for shape in (config.input_dim, size))
        raise UsageError(f"--input_dim {given}: the inputs from {config.data_set} are {actual}")
    config.image_size, config.num_classes = loaders.image_size, loaders.num_classes
    return loaders


def _make_loaders(config: RunConfig) -> Loaders:
    options = {"data_dir": config.data_dir, "download": config.download} | config.options("dataset")
    dataset = build("datasets", config.data_set, **options)
    return make_loaders(
        dataset,
        batch_size=config.batch_size,
        seed=config.seed,
        val_share=config.val_share,
        tuning=config.tuning,
        augment=config.augment,
        normalize=config.normalize,
        image_size=config.image_size,
        num_classes=config.num_classes,
        limit_train_batches=config.limit_train_batches,
        limit_test_batches=config.limit_test_batches,
        random_shuffle_labels=config.random_shuffle_labels,
        device=config.device,
        workers=config.workers,
        preload=config.preload_all_data,
    )


def build_model(config: RunConfig, loaders: Loaders) -> nn.Module:
    """Return a new network, the network of a checkpoint, or a new one with pretrained weights, on the device."""
    options = {
        "in_channels": loaders.in_channels,
        "num_classes": loaders.num_classes,
        "image_size": loaders.image_size,
    } | config.options("model")
    _check_model_size(config.model, options)
    seed_everything(config.seed)
    if config.checkpoint_name is not None:
        file = Path(config.checkpoint_name) / "models" / f"{config.checkpoint_model}{SUFFIX}"
        model = load_network(file, config.model, options)
    elif config.pretrained is not None:
        model = load_pretrained(Path(config.pretrained), config.model, options, config.new_head)
    else:
        model = build("models", config.model, **options)
    return model.to(config.device)


def _check_model_size(name: str, options: dict[str, Any]) -> None:
    """Raise UsageError if a network does not fit into memory, before it is allocated.

    Networks with a large option are built without values for this check.
    """
    if not any(isinstance(value, int) and value > LARGE_OPTION for value in options.values()):
        return
    try:
        with torch.device("meta"):
            model: nn.Module = build("models", name, **options)
    except (RuntimeError, NotImplementedError):  # the constructor reads the values of its tensors
        return
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    shown = ", ".join(f"{option} {value}" for option, value in options.items())
    check_memory(2 * sum(sizes), f"{name} ({shown}), with its gradients,")


def load_network(file: Path, name: str, options: dict[str, Any]) -> nn.Module:
    """Load a checkpoint in float32; raise UsageError unless it is the model `name` for this data and finite."""
    _, header = read_file(file)
    if header["model"] != name:
        raise UsageError(f"{file} contains {header['model']}, not {name}: use --model {header['model']}")
    for option, wanted in options.items():
        saved = header["options"].get(option, option_default(registry.get("models", name), option))
        if saved != wanted:
            raise UsageError(
                f"{file} was saved with {option} {saved}, but this data set or command needs {wanted}"
            )
    model = load_model(file, dtype=torch.float32)
    check_finite(model.state_dict(), file)
    return model


def load_pretrained(file: Path, name: str, options: dict[str, Any], new_head: bool = False) -> nn.Module:
    """Load a checkpoint, or a new network with the tensors of any other file of tensors."""
    if is_safetensors(file) and is_ours(file):
        if new_head:
            raise UsageError(f"--new_head: {file} is a checkpoint of Secateur, whose last layer is kept")
        return load_network(file, name, options)
    model = build("models", name, **options)
    assert isinstance(model, nn.Module)
    load_tensors(file, model, new_head)
    return model


def use_safe_format(config: RunConfig, *models: nn.Module) -> torch.memory_format:
    """Return the memory format of the config; replace it if the networks cannot be trained safely in it."""
    config.memory_format, note = usable_format(config.memory_format, *models)
    if note:
        config.notes.append(note)
    return MEMORY_FORMATS.get(config.memory_format, torch.contiguous_format)


def build_loss(config: RunConfig) -> Loss:
    """Build the loss, with the flags that are options of it."""
    taken = option_names(registry.get("losses", config.loss))
    values = {name: getattr(config, name) for name in LOSS_FLAGS if name in taken}
    flags = {name: value for name, value in values.items() if value is not None}  # None: the default of the loss
    loss: Loss = build("losses", config.loss, **(flags | config.options("loss")))
    return loss


def trainer_class(config: RunConfig) -> type[Trainer]:
    """Return the class of the trainer."""
    return registry.get("trainers", config.train_scheme)


def trainer_options(config: RunConfig) -> dict[str, Any]:
    """Return the options of the trainer, from --set and from flags."""
    taken, options = option_names(trainer_class(config)), config.options("trainer")
    check_options(trainer_class(config), config.train_scheme, options)
    return {name: getattr(config, name) for name in ("l0_reg", "l2_reg", "beta_ema") if name in taken} | options


def trainers_schedule(config: RunConfig, chosen: Schedule) -> Schedule:
    """Return the schedule of the trainer; raise UsageError if the trainer overrides a given --schedule."""
    schedule = trainer_class(config).schedule(chosen, **trainer_options(config))
    if schedule is not chosen:
        if config.schedule is not None:
            raise UsageError(f"{config.train_scheme} determines the schedule: remove --schedule {config.schedule}")
        if (config.prune_delay, config.prune_freq) != (None, None):
            name = config.train_scheme
            config.notes.append(f"{name} determines the schedule: prune_delay and prune_freq have no effect")
    return schedule


def prepare_model(config: RunConfig, model: nn.Module, loaders: Loaders) -> nn.Module:
    """Return the network as modified by the trainer."""
    seed_everything(config.seed)
    return trainer_class(config).prepare_model(model, loaders, **trainer_options(config))


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of the parameter groups of the trainer."""
    groups = trainer_class(config).parameters(model, config.learning_rate, **trainer_options(config))
    decay = 0.0 if config.l0 else config.l2_reg  # with --l0 it is part of the penalty
    options = {"params": groups, "lr": config.learning_rate, "weight_decay": decay, **optimizer_options(config)}
    optimizer: torch.optim.Optimizer = build("optimizers", config.optimizer, **options)
    return optimizer


def build_lr_schedule(
    config: RunConfig, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Build the learning rate scheduler, which is stepped once per epoch; None for "none"."""
    schedulers = torch.optim.lr_scheduler
    if config.lr_schedule == "step":
        return schedulers.StepLR(optimizer, config.lr_step, config.lr_gamma)
    if config.lr_schedule == "multistep":
        return schedulers.MultiStepLR(optimizer, list(config.lr_milestones), config.lr_gamma)
    if config.lr_schedule == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, max(1, config.epochs))
    return None


def build_pruner(config: RunConfig, criterion: Criterion) -> Pruner:
    """Build the pruning listener and write its schedule to the config; raise UsageError for a too short run."""
    own = criterion.schedule
    if not isinstance(own, Schedule):
        name = criterion.name
        raise UsageError(f"{name}: schedule must be a Schedule such as Before(), During() or After(), got {own!r}")
    if getattr(own, "steps", 1) > 1 and "snip_steps" not in config.given:
        config.snip_steps = own.steps - 2  # type: ignore[attr-defined]
    # a criterion that never prunes ignores the settings of the schedule
    schedule = own
    if not isinstance(own, Never):
        schedule = trainers_schedule(config, schedule_of(config, own))
    elif config.schedule in ("rounds", "iterative"):
        config.notes.append(f"{config.prune_criterion} prunes nothing: --schedule {config.schedule} has no effect")
    config.notes += unused_flags(config, not isinstance(own, Never), getattr(own, "steps", 1) > 1)
    plan = schedule.plan(config.pruning_limit, config.epochs)
    config.notes += unused_modes(config, BEFORE_TRAINING in plan)
    if config.enable_rewinding:
        check_rewinding(config.rewind_to, plan, config.epochs)
        if config.fold:
            raise UsageError("--fold and --enable_rewinding exclude each other: rewound weights are not folded")
    elif "rewind_to" in config.given and config.rewind_to:
        config.notes.append("without --enable_rewinding --rewind_to has no effect")
    if criterion.threshold is not None and "pruning_limit" in config.given:
        rule = f"{config.prune_criterion} prunes by a fixed threshold, {criterion.threshold:g}"
        effect = "has no effect" if config.pruning_limit > 0 else "0 prunes nothing"
        config.notes.append(f"{rule}: --pruning_limit {effect}")
    config.scope = config.scope or criterion.scope
    write_back(config, schedule)
    check_moments(config, criterion, plan)
    return _make_pruner(config, criterion, schedule)


def _make_pruner(config: RunConfig, criterion: Criterion, schedule: Schedule) -> Pruner:
    target = target_class(criterion)
    channels = target.units == "channels"
    config.budget = config.budget or target.budgets[0]
    if config.round_to == "auto":  # measured; the config records the result, so that the run can be repeated
        config.round_to = str(fast_multiple(torch.device(config.device)))
    if isinstance(schedule, Iterative) and schedule.counted and "pruning_limit" in config.given:
        config.notes.append("the number of channels ends pruning: --pruning_limit has no effect")
    least = trainer_class(config).least_share(**trainer_options(config)) if target.scored({}) is not None else 0.0
    return pruner_for(
        criterion,
        schedule,
        config.pruning_limit,
        config.epochs,
        seed=config.seed,
        masking=config.masking,
        preserve_moment=config.preserve_moment,
        tracking=Tracking(config.track_batches, config.alpha) if config.track_importance else None,
        options=PruneOptions(
            scope=config.scope,
            protect=config.protect,
            outer_layers=bool(config.outer_layer_pruning),
            rank_inputs=channels and bool(config.outer_layer_pruning),
            budget=config.budget,
            min_channels=config.min_channels,
            round_to=int(config.round_to),
            keep_share=max(config.keep_share, least),
            attention=config.attention,
            inexact=config.inexact,
            fold=config.fold,
        ),
    )


def fit_pruner(config: RunConfig, pruner: Pruner, loaders: Loaders) -> None:
    """Set the frequency of an iterative schedule, which depends on the batches of the run, in the config."""
    if isinstance(pruner.schedule, Iterative):
        config.frequency = pruner.schedule.steps(len(loaders.train) * config.epochs)[0]


def build_criterion(config: RunConfig) -> Criterion:
    """Build the criterion, with element scores weighted by --use_l2 and --use_init unless it has these options."""
    criterion: Criterion = build("criterions", config.prune_criterion, **config.options("criterion"))
    own = option_names(registry.get("criterions", config.prune_criterion))
    return weighted(criterion, config.use_l2 and "use_l2" not in own, config.use_init and "use_init" not in own)


def listeners(config: RunConfig) -> list[Any]:
    """Return the listeners that modify training, according to the flags, other than pruning."""
    listeners: list[Any] = []
    if config.group_wd_coeff > 0:
        listeners.append(GroupDecay(config.group_wd_coeff))
    if config.lr_prune is not None:
        listeners.append(PruningRate(config.lr_prune))
    return listeners
