"""Lookup of the folders of earlier runs and of their checkpoints."""

import os
import time
from contextlib import suppress
from pathlib import Path

from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.run_folder import FINISHED, STAMP, RunFolder
from secateur.utils.errors import UsageError
from secateur.utils.files.regular_file import SUFFIX, check_regular, is_from_torch, is_safetensors
from secateur.utils.suggest import did_you_mean

LAST_SECOND = 253402300799  # of the year 9999; a damaged file system may give any time


def find_checkpoint(config: RunConfig) -> Path:
    """Return the checkpoint that `checkpoint_name` and `checkpoint_model` refer to.

    The name is a folder under `results_dir` or a path to a run folder; default: the newest run folder with the
    checkpoint. Raises UsageError with the folders that were searched.
    """
    stem = (config.checkpoint_model or config.default_checkpoint_model()).removesuffix(SUFFIX)
    if config.checkpoint_name is not None:
        return checkpoint_in(find_folder(config.checkpoint_name, config.results_dir), stem)
    folders = run_folders(config.results_dir)
    for folder in reversed(folders):
        if stem in folder.stems():
            return folder.models / f"{stem}{SUFFIX}"
    hint = did_you_mean(stem, sorted({other for folder in folders for other in folder.stems()}))
    raise UsageError(f"no run in {config.results_dir} has models/{stem}{SUFFIX}{hint}")


def find_pretrained(value: str, model: str, results_dir: str = "results") -> Path:
    """Return the file for `pretrained`: a file of tensors, or the finished `model` of a run folder."""
    path = Path(value)
    if os.path.lexists(path) and not os.path.isdir(path):
        check_regular(path)
        if not is_safetensors(path) and not is_from_torch(path):
            raise UsageError(
                f"pretrained {value} is neither a safetensors file nor a file of torch.save", argument="pretrained"
            )
        return path
    if not (os.path.isdir(path) or os.path.isdir(Path(results_dir) / value)) and path.suffix:
        raise UsageError(f"pretrained {value}: no such file", argument="pretrained")
    return checkpoint_in(find_folder(value, results_dir, "pretrained"), f"{model}_{FINISHED}")


def run_folders(results_dir: str | Path) -> list[RunFolder]:
    """Return the run folders, oldest first, by the stamp in the name and by the time of the last checkpoint."""
    folders = [RunFolder(Path(results_dir) / name) for name in _subfolders(results_dir)]
    return sorted((folder for folder in folders if folder.stems()), key=_age)


def _subfolders(results_dir: str | Path) -> list[str]:
    """Return the names of the folders in `results_dir`; raise UsageError if it exists and cannot be read."""
    try:
        names = os.listdir(results_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        reason = f"results_dir {results_dir} cannot be read: {error.strerror}"
        raise UsageError(reason, argument="results_dir") from error
    return [name for name in names if os.path.isdir(Path(results_dir) / name)]


def _age(folder: RunFolder) -> tuple[str, int, str]:
    written = 0
    for stem in folder.stems():
        with suppress(OSError):  # removed in the meantime
            written = max(written, (folder.models / f"{stem}{SUFFIX}").stat().st_mtime_ns)
    stamp = STAMP.match(folder.name)
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(min(written // 10**9, LAST_SECOND)))
    return (stamp.group() if stamp else moment), written, folder.name


def find_folder(value: str, results_dir: str, argument: str = "checkpoint_name") -> RunFolder:
    """Return the run folder for a name under `results_dir` or a path; raise UsageError if there is none."""
    places = [Path(results_dir) / value, Path(value)]
    for place in places:
        if os.path.isdir(place):
            return RunFolder(place)
    for place in places:
        if os.path.lexists(place):
            check_regular(place)  # raises UsageError for sockets, devices and the like
            raise UsageError(f"{argument} {value}: {place} is a file, not a run folder", argument=argument)
    names = _subfolders(results_dir)
    looked = " or ".join(dict.fromkeys(str(place) for place in places))
    raise UsageError(f"{argument} {value}: no run folder {looked}{did_you_mean(value, names)}", argument=argument)


def checkpoint_in(folder: RunFolder, stem: str) -> Path:
    """Return the checkpoint `stem` of a run folder; raise UsageError, with the existing ones, if it is missing."""
    stems = folder.stems()
    if stem in stems:
        return folder.models / f"{stem}{SUFFIX}"
    existing = f"it has {', '.join(stems)}" if stems else "it has no checkpoint"
    raise UsageError(f"no checkpoint {stem}{SUFFIX} in {folder.models}{did_you_mean(stem, stems)} ({existing})")


def run_of(checkpoint: Path) -> RunFolder:
    """Return the run folder with the settings of a checkpoint; for dense/ that is its parent folder."""
    return run_beside(RunFolder(checkpoint.parent.parent))


def run_beside(folder: RunFolder) -> RunFolder:
    """Return the run folder with the settings of one with checkpoints; for dense/ that is its parent folder."""
    around = RunFolder(folder.path.resolve().parent)
    return around if folder.name == "dense" and not folder.config.is_file() else folder
