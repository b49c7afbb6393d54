"""The way from a command line to the settings of a run: read, resolve, check, and find the named files."""

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.attacks import DEFAULT as DEFAULT_ATTACK
from secateur.framework.settings.attacks import (
    LACKING,
    NEEDS_FOOLBOX,
    check_attack_options,
    chosen_attacks,
    chosen_epsilons,
)
from secateur.framework.settings.checks import check_config
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.files import read_config_file
from secateur.framework.settings.oracle_config import STUDY_FLAGS, StudyConfig, check_study
from secateur.framework.settings.resolve import read_request, resolve
from secateur.framework.settings.run_config import FLAGS, RunConfig, as_written
from secateur.framework.storage.locate import (
    checkpoint_in,
    find_checkpoint,
    find_folder,
    find_pretrained,
    run_beside,
    run_of,
)
from secateur.framework.storage.run_folder import FINISHED
from secateur.framework.training.hooks import installed_folders
from secateur.utils.errors import UsageError

TESTER_FLAGS = [name for name, flag in FLAGS.items() if "tester" in flag.readers]


def prepare_run(
    flags: Mapping[str, Any], file: Path | None = None, kind: type[RunConfig] = RunConfig
) -> tuple[RunConfig, Decisions]:
    """Return the settings of a run, of class `kind`, resolved and checked, and the decisions on them.

    Raises UsageError for every error that can be detected before a model is built; no file is written.
    """
    request = read_request(flags, None if file is None else read_config_file(file), str(file), kind)
    with as_written(request.written):
        add_plugins({**request.file, **request.flags}.get("plugins", ()))
        config, decisions = resolve(request, _run_of_checkpoint)
        if isinstance(config, StudyConfig):
            check_study(config)
        check_config(config, decisions)
        _check_paths(config)
        _check_attacked_data(config)
        return _with_names(config, decisions), decisions


def _run_of_checkpoint(config: RunConfig) -> tuple[str, RunConfig] | None:
    """Return the name and the settings of the run of the checkpoint; None if there is none, or none readable."""
    _check_attack_flags(config)
    if not config.eval and config.checkpoint_name is None:
        return None
    registry.check_name("models", config.model)
    run = run_of(find_checkpoint(config))
    saved = run.read_config()
    return None if saved is None else (run.name, saved)


def add_plugins(folders: Iterable[str]) -> None:
    """Register the plug-ins of installed packages and of `folders`."""
    for package, folder in installed_folders():
        try:
            registry.add_folder(folder)
        except UsageError as error:
            raise UsageError(f"installed package {package}: {error}") from error
    for given in folders:
        registry.add_folder(given)


def _with_names(config: RunConfig, decisions: Decisions) -> RunConfig:
    """Return the settings with default names and absolute paths, so that they repeat the run."""
    names: dict[str, Any] = {"run_name": config.run_name or config.default_run_name()}
    if config.eval or config.checkpoint_name is not None:
        file = find_checkpoint(config)
        if config.checkpoint_name is None:
            decisions.notes.append(f"checkpoint: {file} (of the newest run with one)")
        names |= {"checkpoint_name": str(file.parent.parent.resolve()), "checkpoint_model": file.stem}
    if config.compare_with is not None:
        names["compare_with"] = str(compared_run(config)[0].parent.parent.resolve())
    if config.pretrained is not None:
        names["pretrained"] = str(find_pretrained(config.pretrained, config.model, config.results_dir).resolve())
    if config.data_dir is not None:
        names["data_dir"] = str(Path(config.data_dir).absolute())
    return decisions.complete(config, "by the settings of the run", **names)


def prepare_study(flags: Mapping[str, Any], file: Path | None = None) -> tuple[StudyConfig, Decisions]:
    """Return the settings of a study and the decisions on them, checked and resolved like those of `prepare_run`.

    Raises UsageError for every error that can be detected before a network is loaded; no file is written.
    """
    for name in flags:
        if name not in STUDY_FLAGS:
            raise UsageError(f"--{name} does not apply to the command oracle, which does not train or prune")
    config, decisions = prepare_run(flags, file, StudyConfig)
    assert isinstance(config, StudyConfig)
    return config, decisions


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


def _check_attack_flags(config: RunConfig) -> None:
    """Raise UsageError for invalid names and numbers, which need no checkpoint to check."""
    if not config.eval:
        return
    for name in TESTER_FLAGS:
        FLAGS[name].check(getattr(config, name))
    if config.attack is not None:
        chosen_attacks(config.attack)
    given = config.asked_options("tester")
    if not (config.attacks or given.keys() & set(TESTER_FLAGS)):
        return
    if config.attacks and find_spec("foolbox") is None:
        raise UsageError(NEEDS_FOOLBOX)
    if isinstance(given.get("attack_options"), dict):
        check_attack_options(given["attack_options"])
    attacks = chosen_attacks(given.get("attack", DEFAULT_ATTACK))
    chosen_epsilons(given.get("epsilons"), attacks)
    for name, flag in FLAGS.items():
        value = given.get(name) if flag.attack else None
        if value not in (None, 1) and not any(getattr(attack, flag.attack) for attack in attacks):
            names = ", ".join(attack.name for attack in attacks)
            raise UsageError(f"--{name} {value}: {names} {LACKING[flag.attack]}")


def _check_attacked_data(config: RunConfig) -> None:
    """Raise UsageError unless the checkpoints were trained on the data they are attacked on."""
    if not config.eval:
        return
    if config.attacks:
        run = run_of(find_checkpoint(config))
        saved = run.read_config()
        if saved is None:
            raise UsageError(f"{run.path} has no readable config.yaml with its data set")
        if saved.data_set != config.data_set:
            raise UsageError(f"{run.path} was trained on {saved.data_set}: it cannot be attacked on "
                             f"--data_set {config.data_set}")  # fmt: skip
    if config.compare_with is not None:
        _, saved = compared_run(config)
        for name in ("data_set", "image_size", "tuning", *(["seed"] if config.tuning else [])):
            mine, other = getattr(config, name), getattr(saved, name)
            if mine != other:
                raise UsageError(f"--compare_with {config.compare_with}: it has {name} {other}, this run {mine}: "
                                 "both need the same images")  # fmt: skip


def compared_run(config: RunConfig) -> tuple[Path, RunConfig]:
    """Return the finished checkpoint of the run folder of `--compare_with`, and the settings of that run.

    Raises UsageError if there is none, or if its settings are unreadable.
    """
    assert config.compare_with is not None
    folder = find_folder(config.compare_with, config.results_dir, "--compare_with")
    saved = run_beside(folder).read_config()
    file = checkpoint_in(folder, f"{config.model if saved is None else saved.model}_{FINISHED}")
    if saved is None:
        raise UsageError(f"--compare_with {config.compare_with}: it has no readable config.yaml with its data set")
    return file, saved
