"""Conversion of a command line to a checked config: files, plug-ins, autoconfig and checks, in this order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secateur.framework.commands.attack_checks import (
    attacks_of,
    check_attack_flags,
    check_attacked_data,
    compared_checkpoint,
)
from secateur.framework.commands.oracle_criterions import chosen_criterions
from secateur.framework.plugins.registry import registry
from secateur.framework.settings.autoconfig import fill
from secateur.framework.settings.checks import check_config
from secateur.framework.settings.dialects.gradient_flow import translate
from secateur.framework.settings.dialects.snipit import translated, use_pruning_rate
from secateur.framework.settings.dialects.taylor_pruning import use_pruning_config, use_pruning_method
from secateur.framework.settings.files import merge
from secateur.framework.settings.oracle_config import OWN, STUDY_FLAGS, StudyConfig
from secateur.framework.settings.presets import use_modes
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.settings.schedule_flags import follow_set, use_schedule_flags
from secateur.framework.storage.locate import find_checkpoint, find_pretrained, run_folder_of, run_of
from secateur.framework.training.hooks import installed_folders
from secateur.utils.errors import UsageError

# settings of the data of a run, and further settings that affect the results of an evaluation
INHERITED = ("data_set", "data_dir", "image_size", "normalize", "num_classes", "val_share", "tuning", "seed")
INHERITED_BY_TESTS = ("batch_size", "loss", "limit_test_batches")


def prepare_run(
    flags: Mapping[str, Any], file: Path | None = None, kind: type[RunConfig] = RunConfig
) -> RunConfig:
    """Return the config of a run, of class `kind`: flags, file and defaults merged, completed and checked.

    Automatic decisions are listed in `notes`. Raises UsageError for every error that can be detected before a
    model is built; no file is written.
    """
    flags, lines = translated(flags)
    flags, more = translate(flags, recipe=file is not None)
    config = merge(flags, file, kind)
    config.notes += lines + more
    add_plugins(config.plugins)
    check_attack_flags(config)
    if not config.eval:
        use_pruning_config(config)
    use_pruning_method(config)
    if not config.eval:
        use_schedule_flags(config)
    inherit(config)
    use_modes(config)
    if len(config.input_dim) == 3 and "image_size" not in config.given:
        config.image_size = config.input_dim[1]
        config.given.add("image_size")
    config.notes += map(str, fill(config, registry.folders))
    follow_set(config)
    use_pruning_rate(config)
    check_config(config)
    _check_paths(config)
    check_attacked_data(config)
    resolve(config)
    return config


def inherit(config: RunConfig) -> None:
    """Copy the data settings of the run of a checkpoint, unless the user gave them.

    The accuracy depends on the size and the normalisation of the images.
    """
    if not config.eval and config.checkpoint_name is None:
        return
    registry.check_name("models", config.model)
    run = run_of(find_checkpoint(config))
    saved = run.read_config()
    if saved is None:
        return
    names = INHERITED + (INHERITED_BY_TESTS if config.eval else ())
    if attacks_of(config):  # attacks use --attack_samples instead
        names = tuple(name for name in names if name != "limit_test_batches")
    taken = []
    for name in names:
        value = getattr(saved, name)
        if name in config.given:
            continue
        if value != getattr(config, name):
            taken.append(f"{name} {value}")
        setattr(config, name, value)
        config.given.add(name)
    if config.eval and "memory_format" not in config.given:
        config.memory_format = saved.train_memory_format
    if taken:
        config.notes.append(f"as in {run.name}: {', '.join(taken)}")


def add_plugins(folders: Iterable[str]) -> None:
    """Register the plug-ins of installed packages and of `folders`."""
    for package, folder in installed_folders():
        try:
            registry.add_folder(folder)
        except UsageError as error:
            raise UsageError(f"installed package {package}: {error}") from error
    for given in folders:
        registry.add_folder(given)


def resolve(config: RunConfig) -> None:
    """Set default names and make paths absolute, so that a saved config repeats the run."""
    if config.eval or config.checkpoint_name is not None:
        file = find_checkpoint(config)
        if config.checkpoint_name is None:
            config.notes.append(f"checkpoint: {file} (of the newest run with one)")
        config.checkpoint_name = str(run_folder_of(file).path.resolve())
        config.checkpoint_model = file.stem
    if config.compare_with is not None:
        config.compare_with = str(compared_checkpoint(config).parent.parent.resolve())
    if config.pretrained is not None:
        file = find_pretrained(config.pretrained, config.model, config.results_dir)
        config.pretrained = str(file.resolve())
    if config.data_dir is not None:
        config.data_dir = str(Path(config.data_dir).absolute())
    config.run_name = config.run_name or config.default_run_name()


def prepare_study(flags: Mapping[str, Any], file: Path | None = None) -> StudyConfig:
    """Return the config of a study, checked and resolved like that of `prepare_run`.

    Raises UsageError for every error that can be detected before a network is loaded; no file is written.
    """
    for name in flags:
        if name not in STUDY_FLAGS:
            raise UsageError(f"--{name} does not apply to the command oracle, which does not train or prune")
    config = prepare_run(flags, file, StudyConfig)
    assert isinstance(config, StudyConfig)
    for name in OWN:
        STUDY_FLAGS[name].check(getattr(config, name))
    if "criterion" in config.set:
        raise UsageError("--set criterion: a study uses every criterion with its defaults")
    chosen_criterions(config.criterions)
    return config


def _check_paths(config: RunConfig) -> None:
    folder = Path(config.results_dir)
    for place in (folder, *folder.absolute().parents):
        if os.path.lexists(place):
            if not os.path.isdir(place):
                raise UsageError(f"--results_dir {folder}: {place} is a file, not a folder")
            if not os.access(place, os.W_OK):
                raise UsageError(f"--results_dir {folder}: {place} is not writable")
            break
    # a missing folder may be created by a download
    if config.data_dir is not None and os.path.isfile(config.data_dir):
        raise UsageError(f"--data_dir {config.data_dir} is a file, not a folder")
    if config.pretrained is not None:
        find_pretrained(config.pretrained, config.model, config.results_dir)
    if config.eval or config.checkpoint_name is not None:
        find_checkpoint(config)
