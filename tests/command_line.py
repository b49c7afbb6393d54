"""A made-up plug-ins folder, a registry that forgets it afterwards, and the command line without a run."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from secateur import main
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


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str
    config: RunConfig | None
    command: str | None


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
    calls: list[tuple[RunConfig, str]] = []
    fake = types.ModuleType("secateur.framework.commands.run")
    fake.run = lambda config, line: calls.append((config, line))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "secateur.framework.commands.run", fake)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: object) -> Result:
        calls.clear()
        capsys.readouterr()
        code = main.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        config, line = calls[0] if calls else (None, None)
        return Result(code, printed.out, printed.err, config, line)

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
    return lambda **settings: RunFolder.create(RunConfig(**settings), "python main.py", root=source)
