"""The command line, run for real (`run_main`) or with the run recorded instead of started (`command`)."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from torch import nn

from secateur import load_model, main
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.files import read_config_file
from secateur.framework.settings.resolve import read_request, resolve
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.run_folder import RunFolder

CRITERION = '''
import torch
from secateur import Criterion, During


class {name}(Criterion):
    """{summary}

    More text.
    """

    granularity = "{granularity}"
    schedule = During(delay=4, freq=4)
    paper = "arXiv:0000.00000"

    def __init__(self, *, power: float = 1.0) -> None:
        super().__init__(power=power)

    def score(self, model, batches, loss, groups=None):
        return {{}}
'''
MODEL = '''
from torch import nn


class WideNet(nn.Module):
    """A made-up network."""

    def __init__(self, *, in_channels=1, num_classes=10, image_size=28, hidden_dim=8):
        super().__init__()
'''


FONTS = str(Path(tempfile.gettempdir()) / "fonts-of-secateur-tests")  # matplotlib takes seconds to list them


class Run:
    """What one command left: exit code, output, errors, and the run folder that it printed last."""

    def __init__(self, code: int, out: str, err: str, place: Path) -> None:
        self.code, self.out, self.err = code, out, err
        self.lines = out.splitlines()
        self.folder = RunFolder(place / self.lines[-1]) if code == 0 and self.lines else RunFolder(place)

    @property
    def report(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.folder.report.read_text())
        return facts

    @property
    def oracle(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.folder.oracle.read_text())
        return facts

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]

    @property
    def config(self) -> dict[str, Any]:
        settings: dict[str, Any] = yaml.safe_load(self.folder.config.read_text())
        return settings

    def bytes(self, suffix: str = "finished") -> bytes:
        return self._checkpoint(suffix).read_bytes()

    def network(self, suffix: str = "finished") -> nn.Module:
        return load_model(self._checkpoint(suffix))

    def _checkpoint(self, suffix: str) -> Path:
        (file,) = self.folder.models.glob(f"*_{suffix}.safetensors")
        return file


def run_main(place: Path, *arguments: object, plots: bool = False) -> Run:
    """Call `main.py` in `place`, with a cache of its own; most tests do not look at the plots."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.chdir(place)
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setenv("MPLCONFIGDIR", FONTS)
        if not plots:
            patch.setattr("secateur.framework.reporting.plots.run.draw_all", lambda *_: [])
        code = main.main([str(argument) for argument in arguments])
    return Run(code, out.getvalue(), err.getvalue(), place)


def resolved(
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
    kind: type[RunConfig] = RunConfig,
    saved: RunConfig | None = None,
) -> tuple[RunConfig, Decisions]:
    """The settings for flags and a config file, and the decisions on them, unchecked; `saved`: of a checkpoint."""
    request = read_request(flags or {}, None if file is None else read_config_file(file), str(file), kind)
    return resolve(request, lambda _: None if saved is None else ("saved", saved))


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str
    config: RunConfig | None
    decisions: Decisions | None
    command: str | None

    @property
    def notes(self) -> list[str]:
        """The lines of the log on the settings."""
        assert self.decisions is not None
        return self.decisions.notes


def refused(result: Result, *words: str) -> None:
    """Assert that a command wrote nothing but one line of an error, with these words."""
    assert result.code == 2 and result.config is None, result.err
    assert result.err.count("\n") == 1 and "Traceback" not in result.err
    for word in words:
        assert word in result.err, result.err


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder with the criterions ByWeight and ByChannel and the model WideNet."""
    folder = tmp_path / "mine"
    for place in ("criterions", "models"):
        (folder / place).mkdir(parents=True)
    for name, granularity in (("ByWeight", "weight"), ("ByChannel", "channel")):
        text = CRITERION.format(name=name, granularity=granularity, summary=f"Made up, by {granularity}.")
        (folder / "criterions" / f"{name}.py").write_text(text)
    (folder / "models" / "WideNet.py").write_text(MODEL)
    return folder


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Result]:
    """Call `main.py` with arguments in an empty folder; a run is recorded instead of started."""
    calls: list[tuple[RunConfig, Decisions, str]] = []
    fake = types.ModuleType("secateur.framework.commands.run")
    fake.run = lambda *call: calls.append(call)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "secateur.framework.commands.run", fake)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: object) -> Result:
        calls.clear()
        capsys.readouterr()
        code = main.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err, *(calls[0] if calls else (None, None, None)))

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small source tree."""
    files = ["main.py", "criterions/SNIP.py", "utils/data/small.npz", "configs/quick.yaml", "tests/test_a.py"]
    for name in files:
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "project"


@pytest.fixture
def make(source: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunFolder]:
    """Make a run folder from inside the project; settings as keywords."""
    monkeypatch.chdir(source)
    return lambda **settings: RunFolder.create(RunConfig(**settings), Decisions(), "python main.py", root=source)
