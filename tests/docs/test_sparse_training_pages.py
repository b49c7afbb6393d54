"""The commands and snippets of the pages on regularisers, on networks for CIFAR and on compressed files."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.framework.plugins.registry import registry
from secateur.framework.settings.run_config import FLAGS
from secateur.main import main
from tests import ROOT
from tests.docs.commands import PLAIN, SHORT, blocks, run_folder

REGULARISERS, NETWORKS, FORMAT = (
    (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for page in ("regularisers", "models", "compressed_format")
)
COMMANDS = re.findall(r"^(python main.py [^#\n]*)", REGULARISERS, flags=re.MULTILINE)


def test_the_commands_were_found() -> None:
    assert len(COMMANDS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_a_regulariser_adds_its_penalty_to_the_loss(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main([*shlex.split(command)[2:], *SHORT, *PLAIN]) == 0
    place = run_folder(tmp_path, capsys.readouterr().out)
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["penalty/train"] > 0


@pytest.mark.parametrize("page", [REGULARISERS, NETWORKS, FORMAT], ids=["regularisers", "models", "format"])
def test_flags_files_and_plugins_of_the_page_are_there(page: str) -> None:
    assert set(re.findall(r"`--(?:no_)?(\w+)", page)) <= {*FLAGS, "config"}
    assert all((ROOT / file).is_file() for file in re.findall(r"configs/\w+\.yaml", page))
    first = {row.split("|")[1].strip() for row in page.splitlines() if row.startswith("|")}
    known = {name for kind in ("models", "losses") for name in registry.names(kind)}
    named = {name for cell in first for name in re.findall(r"^`?([A-Z]\w*[a-z]\w*[A-Z]\w*)`?$", cell)}
    assert named <= known


def test_the_snippet_of_the_format_gives_the_same_network_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "compressed_format"}
    (snippet,) = blocks(FORMAT, "python")
    exec(compile(snippet, "compressed_format.md", "exec"), names)
    model, same = names["model"], names["same"]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in same.state_dict().items())
    assert (tmp_path / "small.secateur").stat().st_size * 20 < sum(
        4 * weight.numel() for weight in model.parameters()
    )
