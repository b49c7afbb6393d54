"""Construction of the parts of a run from checked settings."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.framework.commands.machine import seed_everything
from secateur.framework.network.memory_format import MEMORY_FORMATS, lay_out, usable_format
from secateur.framework.plugins.registry import build, check_options, option_default, option_names, registry
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.scoring.weighted import weighted
from secateur.framework.settings.decisions import FOUND, RECOMMENDED, Config, Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.checkpoint import is_ours, load_model, read_file
from secateur.framework.storage.precision import check_finite
from secateur.framework.storage.pretrained import load_tensors
from secateur.framework.training.listeners import GroupDecay, PruningRate
from secateur.framework.training.loss import Loss
from secateur.framework.training.trainer import Trainer
from secateur.utils.errors import UsageError
from secateur.utils.files.regular_file import SUFFIX, is_safetensors
from secateur.utils.loading.dataset import DataSet, SearchedDataSet
from secateur.utils.loading.loaders import Loaders, make_loaders
from secateur.utils.memory import check_memory
from secateur.utils.suggest import one_line

#: options of models above this value may exceed the memory
LARGE_OPTION = 2048
#: options that torch does not combine with fused
OTHER_STEPS = ("foreach", "differentiable")
TRIAL_RATE, TRIAL_GRADIENT, TRIAL_STEPS = 1e-3, 0.1, 3


def build_loaders(config: Config, decisions: Decisions) -> tuple[Loaders, Config]:
    """Return the loaders of the data set, and the settings with the image size and the number of classes."""
    try:
        dataset: DataSet = build("datasets", config.data_set, **config.options("dataset"))
        config = _with_image_size(config, decisions, dataset)
        loaders = make_loaders(dataset, **config.options("loaders"))
    except OSError as error:  # such as an unreadable folder
        raise UsageError(f"{config.data_set}: {error.filename or config.data_dir}: {error.strerror}") from error
    decisions.notes += loaders.remarks
    size = loaders.in_channels, loaders.image_size, loaders.image_size
    if config.input_dim and config.input_dim != size:
        given, actual = (",".join(map(str, shape)) for shape in (config.input_dim, size))
        raise UsageError(f"--input_dim {given}: the inputs from {config.data_set} are {actual}")
    sizes = {"image_size": loaders.image_size, "num_classes": loaders.num_classes}
    return loaders, decisions.choose(config, FOUND, f"read from {config.data_set}", **sizes)


def is_missing(config: RunConfig) -> bool:
    """Whether the data set must be downloaded first."""
    dataset = build("datasets", config.data_set, **config.options("dataset"))
    return config.download and isinstance(dataset, SearchedDataSet) and None in map(dataset.root, (True, False))


def _with_image_size(config: Config, decisions: Decisions, dataset: DataSet) -> Config:
    """Return the settings with the image size that the model recommends for smaller images."""
    usual = getattr(registry.get("models", config.model), "usual_image", None)
    if config.eval or not config.autoconfig or usual is None or config.image_size is not None:
        return config
    if dataset.image_size is None or dataset.image_size >= usual:
        return config
    why = f"by {config.model}, instead of {dataset.image_size} of {config.data_set}"
    return decisions.choose(config, RECOMMENDED, why, image_size=usual)


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


def with_safe_format(config: Config, decisions: Decisions, *models: nn.Module) -> Config:
    """Return the settings with a memory format in which the networks can be trained safely."""
    usable, note = usable_format(config.memory_format, *models)
    if note:
        decisions.notes.append(note)
    return decisions.choose(config, FOUND, "the only safe format here", memory_format=usable)


def laid_out(config: Config, decisions: Decisions, loaders: Loaders, *models: nn.Module) -> Config:
    """Convert networks to evaluate and their batches to a safe memory format; return the settings with it."""
    config = with_safe_format(config, decisions, *models)
    layout = MEMORY_FORMATS.get(config.memory_format, torch.contiguous_format)
    for model in models:
        lay_out(model, layout)
    loaders.test.memory_format = loaders.train.memory_format = layout
    return config


def build_loss(config: RunConfig) -> Loss:
    """Build the loss, with the flags that are options of it."""
    loss: Loss = build("losses", config.loss, **config.options("loss"))
    return loss


def trainer_class(config: RunConfig) -> type[Trainer]:
    """Return the class of the trainer."""
    return registry.get("trainers", config.train_scheme)


def trainer_options(config: RunConfig) -> dict[str, Any]:
    """Return the options of the trainer, from --set and from flags."""
    options = config.options("trainer")
    check_options(trainer_class(config), config.train_scheme, options)
    return options


def prepare_model(config: RunConfig, model: nn.Module, loaders: Loaders) -> nn.Module:
    """Return the network as modified by the trainer."""
    seed_everything(config.seed)
    return trainer_class(config).prepare_model(model, loaders, **trainer_options(config))


def with_fused(config: RunConfig, decisions: Decisions) -> RunConfig:
    """Return the settings with "fused" on if torch supports it for this optimizer, its options and the device."""
    able = "fused" in option_names(registry.get("optimizers", config.optimizer))
    if config.fused == "on" and not able:
        raise UsageError(f"--fused on: {config.optimizer} has no fused step")
    if config.fused != "auto":
        return config
    known_device = torch.device(config.device).type in ("cpu", "cuda")
    fused = able and known_device and not any(map(config.options("optimizer").get, OTHER_STEPS))
    return decisions.choose(
        config, FOUND, f"{config.optimizer} on {config.device}", fused="on" if fused else "off"
    )


def optimizer_options(config: RunConfig) -> dict[str, Any]:
    """Return the options of the optimizer except its parameters."""
    return config.options("optimizer") | ({"fused": True} if config.fused == "on" else {})


def try_optimizer(config: RunConfig) -> None:
    """Take steps on a small tensor; raise UsageError, naming the options, if they fail or are not finite.

    torch checks some options in the constructor, some in the first step, and some not at all.
    """
    options = optimizer_options(config) | {"lr": TRIAL_RATE, "weight_decay": 0.0}
    given = ", ".join(
        f"--set optimizer.{name}={one_line(value, 60)}"
        for name, value in sorted(config.set.get("optimizer", {}).items())
    )
    where = f"{given or '--optimizer'}: {config.optimizer}"
    parameter = nn.Parameter(torch.ones(2, 2, device=config.device))
    try:
        optimizer = build("optimizers", config.optimizer, params=[parameter], **options)
        for _ in range(TRIAL_STEPS):
            parameter.grad = torch.full_like(parameter, TRIAL_GRADIENT)
            optimizer.step()
    except UsageError as error:
        raise UsageError(f"{given}: {error}" if given else str(error)) from error
    except Exception as error:  # torch passes on any exception of its arithmetic
        raise UsageError(f"{where} cannot step ({one_line(error, 160)})") from error
    if not bool(parameter.isfinite().all()):
        raise UsageError(f"{where} gives weights that are not finite")


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of the parameter groups of the trainer."""
    groups = trainer_class(config).parameters(model, config.learning_rate, **trainer_options(config))
    options = optimizer_options(config)
    if config.owns_gates:  # weight decay is part of the penalty
        options["weight_decay"] = 0.0
    optimizer: torch.optim.Optimizer = build("optimizers", config.optimizer, params=groups, **options)
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
