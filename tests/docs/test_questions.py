"""docs/architecture.md, docs/questions.md and CONTRIBUTING.md say what is there, and what they show runs."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from secateur import registry
from secateur.framework.network.latency import measure_latency
from secateur.framework.settings.run_config import FLAGS
from secateur.main import main
from tests import ROOT
from tests.criterions import test_formulas
from tests.docs.commands import PLAIN, SHORT, blocks, command_lines, run_folder
from tests.test_architecture import RANKS

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
QUESTIONS = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
#: paths with a name to be filled in
PATTERNS = re.compile(r"NAME|PROGRAM|\*")


def test_the_picture_has_the_ranks_of_the_rooms() -> None:
    rows = re.findall(r"^ +(\d+)  (\[.*\])", blocks(ARCHITECTURE, "")[0], flags=re.MULTILINE)
    drawn = {int(rank): set(re.findall(r"\[ ([\w.]+) \]", rooms)) for rank, rooms in rows}
    assert len(rows) == len(RANKS)
    assert drawn == {rank: set(rooms) for rank, rooms in enumerate(RANKS)}


def test_the_paths_that_the_page_names_exist() -> None:
    paths = {path.rstrip(".") for path in re.findall(r"[\w*.]+/[\w*./]*", ARCHITECTURE)} | {"main.py"}
    assert len(paths) > 50
    for path in paths:
        place = ROOT / path
        assert (place.parent if PATTERNS.search(path) else place).exists(), path
    for link in re.findall(r"\]\((\S+?)\)", ARCHITECTURE):
        assert (ROOT / "docs" / link).is_file(), link


FLOW = [line for block in blocks(ARCHITECTURE, "")[1:] for line in block.splitlines()]


@pytest.mark.parametrize("line", FLOW, ids=lambda line: line.split("  framework")[0].strip())
def test_the_way_of_the_data_names_what_its_files_define(line: str) -> None:
    names, files = re.split(r" {2,}", line.strip())[:2]
    source = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files.split(" | "))
    for name in re.split(r", | \| ", names):
        assert re.search(rf"^(?:def|class) {name}\b", source, flags=re.MULTILINE), name


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/questions.md", "CONTRIBUTING.md"])
def test_links_and_flags_of_the_page_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)#?(.*?)\)", text):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.is_file(), target
        assert not anchor or anchor in slugs(file.read_text(encoding="utf-8")), f"{target}#{anchor}"
    prose = re.sub(r"```bash.*?```|\]\(.*?\)", "", text, flags=re.DOTALL)
    flags = set(re.findall(r"--(?:no_)?(\w+)", prose))
    assert flags <= {*FLAGS, "config", "explain", "help"}
    assert not re.search(r"@[A-Z_]+@", text)


def test_the_paths_that_contributing_names_exist() -> None:
    paths = {path for path in re.findall(r"`([\w.]+/[\w./]*)`", CONTRIBUTING) if "FilterSpread" not in path}
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path


COMMANDS = command_lines(QUESTIONS)
#: which run the same code as the others, as the README's or as the study's own tests
LONG = [line for line in COMMANDS if re.search("SNAPit|after|--train_dense|Random|EmptyCrit|oracle", line)]


def test_the_commands_were_found_and_are_of_the_command_line() -> None:
    assert len(COMMANDS) >= 10 and len(LONG) < len(COMMANDS)
    assert all(line.startswith("python main.py") for line in COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run the commands in, which share a trained LeNet5."""
    return tmp_path_factory.mktemp("questions")


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder as working directory; pictures are for other tests."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr("secateur.framework.reporting.plots.run.draw_all", lambda *_: [])
    return folder


def trained(folder: Path) -> Path:
    """The run folder of a LeNet5, which the first caller makes."""
    if not list((folder / "results").glob("*_MY_RUN")):
        words = ["--model", "LeNet5", "--prune_criterion", "EmptyCrit", "--run_name", "MY_RUN"]
        assert main([*words, *SHORT, *PLAIN]) == 0
    return next((folder / "results").glob("*_MY_RUN"))


@pytest.mark.parametrize(
    "command", [pytest.param(line, marks=pytest.mark.slow if line in LONG else ()) for line in COMMANDS]
)
def test_command(command: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[2:]
    if "list" in words or "--help" in words:
        assert main(words) == 0
        assert "SNAPit" in capsys.readouterr().out
        return
    if "oracle" in words or "results/MY_RUN" in words:
        run = trained(inside)
        words = [str(run) if word == "results/MY_RUN" else word for word in words]
    less = ["--samples", "20", "--threads", "1"] if "oracle" in words else [*SHORT, *PLAIN]
    assert main([*words, *less]) == 0
    place = run_folder(inside, capsys.readouterr().out)
    assert (place / ("oracle.json" if "oracle" in words else "report.json")).is_file()


SNIPPETS = {
    name: next(code for code in blocks(QUESTIONS, "python") if word in code)
    for name, word in {
        "latency": "copy.deepcopy",
        "onnx": "onnxruntime",
        "several inputs": "OneTensor",
        "training loop": "CosineAnnealingLR",
        "masks": "masks.apply()",
    }.items()
}


def test_every_snippet_is_run() -> None:
    assert sorted(SNIPPETS.values()) == sorted(blocks(QUESTIONS, "python"))


# the exporter uses deprecated parts of torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "onnx" else ()) for name in SNIPPETS]
)
def test_snippet(
    name: str, inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "secateur.framework.reporting.measure.measure_latency", partial(measure_latency, repeats=1, warmup=0)
    )
    exec(compile(SNIPPETS[name], "questions.md", "exec"), {"__name__": "questions"})
    shown = capsys.readouterr().out
    numbers = [float(number) for number in re.findall(r"\d+\.?\d*(?:e-\d+)?", shown)]
    if name == "latency":
        dense, pruned = (int(macs) for macs in re.findall(r"(\d+) MACs", shown))
        assert pruned == pytest.approx(0.25 * dense, rel=0.05)
    elif name == "onnx":
        assert numbers[-1] < 1e-4 and "features.0.weight [" in shown
    elif name == "several inputs":
        assert numbers[0] == pytest.approx(0.4, abs=0.01)
        assert "LayerNorm" in shown and "torch.Size([8, 4])" in shown
    elif name == "training loop":
        assert re.findall(r"sparsity (\S+),", shown) == ["0.40", "0.80"]
        assert (inside / "pruned.safetensors").is_file()
    else:
        assert "Masks(model).apply()" in shown and "0.90 of the weights" in shown


@pytest.fixture
def filter_spread(tmp_path: Path) -> Iterator[type]:
    """The criterion of CONTRIBUTING.md, registered as a plug-in."""
    (tmp_path / "criterions").mkdir()
    (tmp_path / "criterions" / "FilterSpread.py").write_text(blocks(CONTRIBUTING, "python")[0], encoding="utf-8")
    registry.add_folder(tmp_path)
    yield registry.get("criterions", "FilterSpread")


def test_the_criterion_of_contributing_passes_its_own_test(filter_spread: type) -> None:
    namespace = dict(vars(test_formulas))
    exec(compile(blocks(CONTRIBUTING, "python")[1], "CONTRIBUTING.md", "exec"), namespace)
    namespace["test_filter_spread_is_the_standard_deviation_of_the_rows"]()


MAKE = [line for line in command_lines(CONTRIBUTING) if line.startswith("make ")]
PYTEST = [line for line in command_lines(CONTRIBUTING) if not line.startswith("make ")]


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_targets_of_contributing(command: str) -> None:
    done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "No rule" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", PYTEST)
def test_the_other_commands_of_contributing_pass(command: str) -> None:
    program, *words = shlex.split(command)
    assert program == ".venv/bin/python"
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
