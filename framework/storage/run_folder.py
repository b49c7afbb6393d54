"""The dated folder that a run leaves behind; the only file that knows what its files are called.

results/<YYYY-MM-DD>_<HH-MM-SS>_<run name>/
    codebase/            the source tree as it was, with the --plugins folders under codebase/plugins/
    command.txt          the command line, quoted for a shell
    config.yaml          every setting; `python codebase/main.py --config config.yaml` repeats the run
    environment.json     versions, machine, device, commit, start time
    metrics.jsonl        one line per evaluation
    tensorboard/         the same as curves
    models/              <Model>_<suffix>.safetensors
    output/log.txt       what was printed
    plots/               PNG files
    weights.safetensors  sign flips, mean and variance of each weight, with --track_weights
    report.json          the result; of the command oracle, oracle.json
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
from pathlib import Path

from secateur.framework.plugins.registry import ROOT
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.settings.saved_config import load_config
from secateur.framework.storage.environment import describe_environment
from secateur.framework.storage.snapshot import TOP_NEVER, copy_tree
from secateur.utils.errors import RunError, UsageError
from secateur.utils.files import atomic
from secateur.utils.files.formats import SUFFIX

FINISHED = "finished"
STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
UNSAFE = re.compile(r"[^\w+=,@-]")  # \w is letters and digits of any language
LONGEST, LONGEST_BYTES = 60, 200  # of a run name; file systems stop at 255 bytes, with the stamp and a number


class RunFolder:
    """The paths of one run, and the files that describe it. `RunFolder(path)` opens one that is there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.codebase = self.path / "codebase"
        self.command = self.path / "command.txt"
        self.config = self.path / "config.yaml"
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
    def create(cls, config: RunConfig, command: str, root: Path = ROOT) -> RunFolder:
        """Make the folder under `config.results_dir` and write all that is known before the run starts.

        `root` is the source tree to copy. Raises RunError when something cannot be written.
        """
        try:
            folder = cls(_new_folder(config))
            folder.make_places()
            folder._copy_sources(config, root)
            atomic.write_text(folder.command, command + "\n")
            folder.write_config(config)
            folder.write_environment(config, root)
        except OSError as error:
            raise RunError(f"cannot write the run folder in {config.results_dir}: {error}") from error
        return folder

    def make_places(self) -> None:
        """The folders for what a training run writes."""
        for place in (self.tensorboard, self.models, self.log.parent, self.plots):
            place.mkdir(parents=True)

    def checkpoint(self, model_name: str, suffix: str = FINISHED) -> Path:
        """models/<Model>_<suffix>.safetensors"""
        return self.models / f"{model_name}_{suffix}{SUFFIX}"

    def stems(self) -> list[str]:
        """Names of the checkpoints that are there, without the ending; none in a folder that cannot be read."""
        try:
            names = os.listdir(self.models)
        except OSError:
            return []
        stems = [name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX) and name[0] != "."]
        return sorted(stem for stem in stems if os.path.isfile(self.models / f"{stem}{SUFFIX}"))

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml, again once choices were measured; plug-in folders are named as copied."""
        import yaml

        values = config.to_dict()
        values["plugins"] = [self._plugins.get(folder, folder) for folder in config.plugins]
        atomic.write_text(self.config, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def read_config(self) -> RunConfig | None:
        """The settings of the run, None where config.yaml is missing, damaged or of another version."""
        try:
            return self.load_config()
        except UsageError:
            return None

    def load_config(self) -> RunConfig:
        """The settings of the run. Raises UsageError that says what is wrong with config.yaml."""
        return load_config(self.config)

    def write_environment(self, config: RunConfig, root: Path = ROOT) -> None:
        """Write environment.json, again once the device and the threads are known."""
        facts = describe_environment(config.device, root)
        atomic.write_json(self.environment, {**facts, "started": self.started.isoformat(timespec="seconds")})

    def _copy_sources(self, config: RunConfig, root: Path) -> None:
        skip = [Path(config.results_dir), self.path]
        copy_tree(root, self.codebase, skip, TOP_NEVER)
        _as_clone(self.codebase)
        for given in config.plugins:
            source = Path(given).resolve()
            target = self.codebase / "plugins" / source.name
            if source != root.resolve() / "plugins" / source.name:  # else it is copied already
                target.parent.mkdir(exist_ok=True)
                target = _make_unused(target)
                copy_tree(source, target, skip)
            self._plugins[given] = target.relative_to(self.path).as_posix()


def _as_clone(codebase: Path) -> None:
    """Lay out the copy of an installed package as a clone, so that `python codebase/main.py` imports the copy."""
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
    """Make `path`, or the first of path_2, path_3, ... that is not there; no two processes get the same."""
    for number in itertools.count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            os.mkdir(candidate)
            return candidate
        except FileExistsError:
            continue
    raise AssertionError("itertools.count ends never")
