"""The dated folder of a run; the names of its files are defined here only.

results/<YYYY-MM-DD>_<HH-MM-SS>_<run name>/
    codebase/            copy of the source tree, with the --plugins folders under codebase/plugins/
    command.txt          the command line, quoted for a shell
    config.yaml          every setting; `python codebase/main.py --config config.yaml` repeats the run
    decisions.json       every setting that the user did not give: its value, who chose it, and why
    environment.json     versions, machine, device, commit, start time
    metrics.jsonl        one line per evaluation
    tensorboard/         the same metrics as curves
    models/              <Model>_<suffix>.safetensors
    output/log.txt       console output
    plots/               PNG files
    weights.safetensors  sign flips, mean and variance of each weight, with --track_weights
    report.json          the results; oracle.json for the command oracle
"""

from __future__ import annotations

import datetime
import glob
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from secateur.framework.plugins.registry import ROOT
from secateur.framework.settings.decisions import USER, Decisions
from secateur.framework.settings.files import load_config
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.environment import describe_environment
from secateur.utils.errors import RunError, UsageError
from secateur.utils.files import atomic
from secateur.utils.files.regular_file import SUFFIX

FINISHED = "finished"
STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
UNSAFE = re.compile(r"[^\w+=,@-]")  # \w is letters and digits of any language
LONGEST, LONGEST_BYTES = 60, 200  # of a run name; file systems stop at 255 bytes, with the stamp and a number
LARGEST_SOURCE = 50 * 2**20  # bytes; a larger file is data, not source
#: names that are not copied, anywhere or at the top of the source
NEVER = {
    ".git", ".hg", ".svn", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache",
    ".hypothesis", ".ipynb_checkpoints",
}  # fmt: skip
TOP_NEVER = {"results", "data"}


class RunFolder:
    """The paths of a run, and the files that describe it. `RunFolder(path)` opens an existing folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.codebase = self.path / "codebase"
        self.command = self.path / "command.txt"
        self.config = self.path / "config.yaml"
        self.decisions = self.path / "decisions.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.models = self.path / "models"
        self.log = self.path / "output" / "log.txt"
        self.plots = self.path / "plots"
        self.tracked = self.path / "weights.safetensors"
        self.report = self.path / "report.json"
        self.oracle = self.path / "oracle.json"
        self.started = datetime.datetime.now().astimezone()
        self._plugins: dict[str, str] = {}  # as given -> as copied, relative to the run folder

    @classmethod
    def create(cls, config: RunConfig, decisions: Decisions, command: str, root: Path = ROOT) -> RunFolder:
        """Create the folder under `config.results_dir` and write everything that is known before the run starts.

        `root` is the source tree to copy. Raises RunError if a file cannot be written.
        """
        try:
            folder = cls(_new_folder(config))
            folder.make_places()
            folder._copy_sources(config, root)
            atomic.write_text(folder.command, command + "\n")
            folder.write_settings(config, decisions)
            folder.write_environment(config, root)
        except OSError as error:
            raise RunError(f"cannot write the run folder in {config.results_dir}: {error}") from error
        return folder

    def make_places(self) -> None:
        """Create the subfolders of a training run."""
        for place in (self.tensorboard, self.models, self.log.parent, self.plots):
            place.mkdir(parents=True)

    def checkpoint(self, model_name: str, suffix: str = FINISHED) -> Path:
        """Return the path models/<Model>_<suffix>.safetensors."""
        return self.models / f"{model_name}_{suffix}{SUFFIX}"

    def stems(self) -> list[str]:
        """Return the sorted names of the existing checkpoints, without suffix; [] if the folder is unreadable."""
        names = glob.glob(f"*{SUFFIX}", root_dir=self.models)
        return sorted(name.removesuffix(SUFFIX) for name in names if os.path.isfile(self.models / name))

    def write_settings(self, config: RunConfig, decisions: Decisions) -> None:
        """Write or rewrite config.yaml, with the paths of the copied plug-ins folders, and decisions.json."""
        import yaml

        values = config.to_dict()
        values["plugins"] = [self._plugins.get(folder, folder) for folder in config.plugins]
        atomic.write_text(self.config, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        atomic.write_json(
            self.decisions, [row._asdict() for row in decisions.table(config) if row.source not in USER]
        )

    def read_config(self) -> RunConfig | None:
        """Return the settings of the run; None if config.yaml is missing, damaged or of another version."""
        try:
            return load_config(self.config)
        except UsageError:
            return None

    def write_environment(self, config: RunConfig, root: Path = ROOT) -> None:
        """Write or rewrite environment.json, with the current device and number of threads."""
        facts = describe_environment(config.device, root)
        atomic.write_json(self.environment, {**facts, "started": self.started.isoformat(timespec="seconds")})

    def _copy_sources(self, config: RunConfig, root: Path) -> None:
        skip = [Path(config.results_dir), self.path]
        copy_tree(root, self.codebase, skip, TOP_NEVER)
        _as_clone(self.codebase)
        for given in config.plugins:
            source = Path(given).resolve()
            target = self.codebase / "plugins" / source.name
            if source != root.resolve() / "plugins" / source.name:  # otherwise it is part of the source tree
                target.parent.mkdir(exist_ok=True)
                target = _make_unused(target)
                copy_tree(source, target, skip)
            self._plugins[given] = target.relative_to(self.path).as_posix()


def _as_clone(codebase: Path) -> None:
    """Arrange the copy of an installed package like a clone, so that `python codebase/main.py` imports it."""
    package = codebase / "secateur"
    if package.is_dir() or not (codebase / "__init__.py").is_file():
        return
    package.mkdir()
    for file in ("__init__.py", "__main__.py", "py.typed"):
        (codebase / file).rename(package / file)


def _new_folder(config: RunConfig) -> Path:
    results = Path(config.results_dir)
    results.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = UNSAFE.sub("-", config.run_name or config.default_run_name())[:LONGEST]
    name = name.encode()[:LONGEST_BYTES].decode(errors="ignore")
    return _make_unused(results / f"{stamp}_{name}")


def _make_unused(path: Path) -> Path:
    """Create `path`, or the first of path_2, path_3, ... that does not exist, without races between processes."""
    candidate, number = path, 1
    while True:
        try:
            os.mkdir(candidate)
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}_{number}")


def copy_tree(source: Path, target: Path, skip: Collection[Path] = (), top_never: Collection[str] = ()) -> None:
    """Copy the files below `source` to the same relative paths below `target`.

    Excluded are version control, virtual environments, caches, run folders, files over 50 MB, symbolic links to
    targets outside `source`, the folders `skip`, unreadable files and, at the top level, the names `top_never`.
    """
    root, skipped = source.resolve(), {path.resolve() for path in skip}
    for place, folders, files in os.walk(root):  # neither links to folders nor unreadable folders are entered
        folder, copy = Path(place), target / Path(place).relative_to(root)
        never = NEVER.union(top_never) if folder == root else NEVER
        folders[:] = [name for name in folders if name not in never and _is_part(folder / name, skipped)]
        copy.mkdir(parents=True, exist_ok=True)
        for name in set(files) - never:
            try:
                if _is_source(folder / name, root, skipped):
                    shutil.copy2(folder / name, copy / name)
            except (FileNotFoundError, PermissionError) as error:
                # removed in the meantime or unreadable: not part of the source that this run has imported
                if error.filename is None or Path(error.filename).is_relative_to(target):
                    raise


def _is_part(folder: Path, skipped: Collection[Path]) -> bool:
    """Whether a folder is part of the source: not to be skipped, no virtual environment and no run folder."""
    is_run = os.path.isfile(folder / "command.txt") and os.path.isdir(folder / "codebase")
    return folder not in skipped and not is_run and not os.path.exists(folder / "pyvenv.cfg")


def _is_source(file: Path, root: Path, skipped: Collection[Path]) -> bool:
    if file.is_symlink():  # links may be circular or lead outside the source tree
        real = file.resolve()
        inside = real.is_relative_to(root) and not any(real.is_relative_to(folder) for folder in skipped)
        if not inside or NEVER.intersection(real.relative_to(root).parts):
            return False
    return file.is_file() and file.stat().st_size <= LARGEST_SOURCE
