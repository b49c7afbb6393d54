"""The way from a command line to the settings of a run: read, resolve, check, and find the named files."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from secateur.framework.commands.attack_checks import check_attack_flags, check_attacked_data, compared_checkpoint
from secateur.framework.commands.oracle_criterions import chosen_criterions
from secateur.framework.plugins.registry import registry
from secateur.framework.settings.checks import check_config
from secateur.framework.settings.decisions import DEFAULT, Decisions
from secateur.framework.settings.files import read_config_file
from secateur.framework.settings.oracle_config import OWN, STUDY_FLAGS, StudyConfig
from secateur.framework.settings.resolve import read_request, resolve
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.locate import find_checkpoint, find_pretrained, run_of
from secateur.framework.training.hooks import installed_folders
from secateur.utils.errors import UsageError


def prepare_run(
    flags: Mapping[str, Any], file: Path | None = None, kind: type[RunConfig] = RunConfig
) -> tuple[RunConfig, Decisions]:
    """Return the settings of a run, of class `kind`, resolved and checked, and the decisions on them.

    Raises UsageError for every error that can be detected before a model is built; no file is written.
    """
    request = read_request(flags, None if file is None else read_config_file(file), str(file), kind)
    add_plugins({**request.file, **request.flags}.get("plugins", ()))
    config, decisions = resolve(request, _run_of_checkpoint)
    check_config(config, decisions)
    _check_paths(config)
    check_attacked_data(config)
    return _with_names(config, decisions), decisions


def _run_of_checkpoint(config: RunConfig) -> tuple[str, RunConfig] | None:
    """Return the name and the settings of the run of the checkpoint; None if there is none, or none readable."""
    check_attack_flags(config)
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
        names["compare_with"] = str(compared_checkpoint(config).parent.parent.resolve())
    if config.pretrained is not None:
        names["pretrained"] = str(find_pretrained(config.pretrained, config.model, config.results_dir).resolve())
    if config.data_dir is not None:
        names["data_dir"] = str(Path(config.data_dir).absolute())
    return decisions.choose(config, DEFAULT, "by the settings of the run", **names)


def prepare_study(flags: Mapping[str, Any], file: Path | None = None) -> tuple[StudyConfig, Decisions]:
    """Return the settings of a study and the decisions on them, checked and resolved like those of `prepare_run`.

    Raises UsageError for every error that can be detected before a network is loaded; no file is written.
    """
    for name in flags:
        if name not in STUDY_FLAGS:
            raise UsageError(f"--{name} does not apply to the command oracle, which does not train or prune")
    config, decisions = prepare_run(flags, file, StudyConfig)
    assert isinstance(config, StudyConfig)
    for name in OWN:
        STUDY_FLAGS[name].check(getattr(config, name))
    if "criterion" in config.set:
        raise UsageError("--set criterion: a study uses every criterion with its defaults")
    chosen_criterions(config.criterions)
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
    if config.pretrained is not None:
        find_pretrained(config.pretrained, config.model, config.results_dir)
    if config.eval or config.checkpoint_name is not None:
        find_checkpoint(config)
