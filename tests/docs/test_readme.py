"""Every command and snippet in README.md and in docs/ runs."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.settings.attacks import ATTACKS as EVERY_ATTACK
from secateur.framework.settings.checks import FIXED
from secateur.framework.settings.dialects.discovery import OTHER_PROGRAMS
from secateur.framework.settings.run_config import FLAGS
from secateur.main import main
from tests import ROOT
from tests.docs.commands import NARROW, PLAIN, SHORT, blocks, command_lines

README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN_FOLDER = (ROOT / "docs" / "run_folder.md").read_text(encoding="utf-8")
#: on full networks, whose passes take a while: the others run the same code on smaller ones
LONG = (
    "python main.py --model VGG16 --prune_criterion SNAPit",
    "python main.py --eval --model VGG16",
    "python main.py --model ResNet18 --prune_criterion SNAPitDuring --prune_delay 1 --prune_freq 2 --epochs 20",
    "python main.py --model Conv6 --prune_criterion SNIP --pruning_limit 0.95",
    "python main.py --model ResNet18 --prune_criterion ChannelNorm --budget macs --scope isomorphic --round_to 8 "
    "--schedule before",
    "python main.py --model VGG16 --checkpoint_name results/MY_RUN --prune_criterion EmptyCrit --epochs 5",
)
COMMANDS = [line for line in command_lines(README) if line.startswith("python main.py")]
PICTURED = re.findall(r"^python main.py .*$", RUN_FOLDER, flags=re.MULTILINE)
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
ROBUSTNESS = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
ATTACKS = [line for line in ROBUSTNESS.splitlines() if line.startswith("python main.py")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run the commands in, with the plug-ins of the README."""
    place = tmp_path_factory.mktemp("readme")
    for path, text in re.findall(
        r"Save this as `(my_plugins/\S+?)`:\n\n```python\n(.*?)```", README, flags=re.DOTALL
    ):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_text(text)
    return place


@pytest.fixture(autouse=True)
def less(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are looked at by one test alone."""
    if "guide_to_the_run_folder" not in request.node.name:
        monkeypatch.setattr("secateur.framework.reporting.plots.run.draw_all", lambda *_: [])


def test_the_readme_shows_two_plugins_of_the_promised_length(folder: Path) -> None:
    lines = {
        path.stem: [line for line in path.read_text().splitlines() if line.strip()]
        for path in folder.rglob("my_plugins/*/*.py")
    }
    assert set(lines) == {"GradientNorm", "Mixup"}
    assert len(lines["GradientNorm"]) <= 15
    assert len(lines["Mixup"]) <= 10


def test_commands_were_found() -> None:
    assert len(COMMANDS) >= 12


def test_the_long_commands_are_in_the_readme() -> None:
    assert set(LONG) <= set(COMMANDS)


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=pytest.mark.slow if one in LONG else ()) for one in COMMANDS]
)
def test_command(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    words = shlex.split(command)[2:]
    if "list" in words or "--help" in words:
        assert main(words) == 0
        assert "SNAPit" in capsys.readouterr().out
        return
    if "VGG16" in words and "SNAPit" not in words:  # one run makes the checkpoint
        _vgg16_run(folder)
    if "--attack" in words:
        _lenet5_run(folder)
    if "results/MY_RUN" in words:
        words[words.index("results/MY_RUN")] = str(next((folder / "results").glob("*vgg16_for_readme*")))
    assert main([*words, *SHORT, *PLAIN]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert (folder / last / "report.json").is_file()


def test_the_guide_to_the_run_folder_lists_exactly_what_its_command_leaves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (command,) = PICTURED
    assert main([*shlex.split(command)[2:], *SHORT[2:], *NARROW]) == 0
    place = folder / capsys.readouterr().out.strip().splitlines()[-1]
    files, metrics, pictures, _ = (part for part in re.split(r"^## ", RUN_FOLDER, flags=re.MULTILINE))
    listed = set(re.findall(r"^\| `(.+?)/?` \|", files, flags=re.MULTILINE))
    assert {Path(name).parts[0] for name in listed} == {path.name for path in place.iterdir()}
    assert all((place / name).exists() for name in listed)
    drawn = set(re.findall(r"^\| `(\w+\.png)` \|", pictures, flags=re.MULTILINE))
    assert drawn == {path.name for path in (place / "plots").iterdir()}
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    left = {re.sub(r"(layer/sparsity)/.*", r"\1/LAYER", key) for row in rows for key in row}
    named = {key for line in re.findall(r"^\| (`\w+/.*?) \|", metrics, flags=re.MULTILINE)
             for key in re.findall(r"`(.+?)`", line)}  # fmt: skip
    assert named - {"cuda/ram_footprint"} == {key for key in left if "/" in key}
    assert {key for key in left if "/" not in key} == {"epoch", "phase", "step", "samples", "seconds"}
    flags = set(re.findall(r"`--(?:no_)?(\w+)", RUN_FOLDER))
    assert flags <= {*FLAGS, "config", "explain"}
    events = EventAccumulator(str(place / "tensorboard"))
    events.Reload()
    tags = {tag for kind in ("images", "histograms") for tag in events.Tags()[kind]}
    shown = set(re.findall(r"`(\w+/[\w/]+)`", pictures)) - {"plots/"}
    layers = {key.removeprefix("layer/sparsity/") for row in rows for key in row if key.startswith("layer/")}
    expected = {tag.replace("LAYER", layer) for tag in shown for layer in layers}
    assert tags == expected


def _vgg16_run(folder: Path) -> None:
    if not list((folder / "results").glob("*vgg16_for_readme*")):
        command = "--model VGG16 --prune_criterion SNAP --pruning_limit 0.9 --run_name vgg16_for_readme --epochs 1"
        assert main([*command.split(), *SHORT[2:], *PLAIN]) == 0


def _lenet5_run(folder: Path) -> None:
    if not list((folder / "results").glob("*/models/LeNet5_finished.safetensors")):
        assert main(["--model", "LeNet5", *SHORT, *PLAIN]) == 0


def test_the_script_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    script = next(text for text in blocks(README, "python") if "save_model" in text)
    exec(compile(script, "README.md", "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    asked, reached = map(float, shown[0].split())
    assert asked == 0.5
    assert reached == pytest.approx(0.5, abs=0.001)
    assert "model output" in shown[2]


def test_the_files_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\((docs/\S+?)\)", README) + re.findall(r"`(configs/\S+?)`", README):
        assert (ROOT / name).is_file(), name


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"@[A-Z_]+@", README)


def test_the_criterion_of_the_guide_is_its_formula() -> None:
    code = next(code for code in blocks(GUIDE, "python") if "def formula" in code)
    namespace: dict[str, Any] = {}
    exec(compile(code, "extending.md", "exec"), namespace)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(6) % 2
    batches = list(zip(inputs.split(3), targets.split(3), strict=True))
    scores = namespace["Sensitivity"]().score(model, batches, F.cross_entropy)
    weight = model[0].weight
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), targets), weight)
    expected = [abs(sum(w * g for w, g in zip(*pair, strict=True))) for pair in zip(weight, gradient, strict=True)]
    torch.testing.assert_close(scores["0"], torch.stack(expected).detach().float())


def test_the_hooks_of_the_guide_are_real() -> None:
    (entry_point,) = (code for code in blocks(GUIDE, "toml") if "entry-points" in code)
    assert tomllib.loads(entry_point)["project"]["entry-points"]["secateur"]
    namespace: dict[str, object] = {"__file__": str(ROOT / "my_package.py")}
    code = next(code for code in blocks(GUIDE, "python") if "hookimpl" in code)
    exec(compile(code, "extending.md", "exec"), namespace)
    from types import SimpleNamespace

    from secateur.framework.training.hooks import HookSpecs, manager

    plugin = SimpleNamespace(**{name: namespace[name] for name in ("plugin_folders", "epoch_ended")})
    relay = manager([plugin]).hook
    assert relay.plugin_folders() == [[ROOT / "plugins"]]
    named = re.findall(r"`(\w+)`", GUIDE.split("lists the hooks")[1].split(")")[0])
    assert sorted(named) == sorted(n for n in vars(HookSpecs) if not n.startswith("_") and n != "plugin_folders")


TRAINERS = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
TRAINER_COMMANDS = re.findall(r"^python main.py .*", TRAINERS, flags=re.MULTILINE)


def test_the_commands_of_the_trainers_page_were_found() -> None:
    assert len(TRAINER_COMMANDS) >= 8


@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=pytest.mark.slow if "ResNet18" in one else ()) for one in TRAINER_COMMANDS],
)
def test_command_of_the_trainers_page(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    words = [*shlex.split(command)[2:], *SHORT, *PLAIN]
    if "results/MY_RUN" in words:
        found = list((folder / "results").glob("*_MY_RUN"))
        if not found:
            first = shlex.split(TRAINER_COMMANDS[0])[2:]
            assert main([*first, *SHORT, *PLAIN]) == 0
            found = list((folder / "results").glob("*_MY_RUN"))
        words[words.index("results/MY_RUN")] = str(found[0])
    if "trainer.tick=2" in words:
        words += ["--epochs", "7"]
    assert main(words) == 0
    report = json.loads((folder / capsys.readouterr().out.strip().splitlines()[-1] / "report.json").read_text())
    assert report["trainer"]["name"] in ("TickTock", "L0Trainer") or "EmptyCrit" in words


SCHEDULES = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
SCHEDULE_COMMANDS = re.findall(r"^python main.py .*", SCHEDULES, flags=re.MULTILINE)


@pytest.mark.parametrize("command", [line for line in SCHEDULE_COMMANDS if "--config" not in line])
def test_command_of_the_page_of_schedules(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    fewer = ["--imp_samples", "16"] if "LossBased" in command else []
    words = [*shlex.split(command)[2:], *SHORT[2:], *NARROW, *fewer, "--plot_weights_freq", "0"]
    assert main(words) == 0
    place = folder / capsys.readouterr().out.strip().splitlines()[-1]
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    gone = rows[-1]["sparse/weight" if "SNIP" in command else "sparse/node"]
    assert gone > 0 and "pruning" in {row["phase"] for row in rows}


def test_the_page_of_schedules_names_flags_and_recipes_that_there_are() -> None:
    assert set(re.findall(r"`--(?:no_)?(\w+)", SCHEDULES)) <= {*FLAGS, *OTHER_PROGRAMS, "config"}
    files = {file.stem for file in (ROOT / "configs").glob("*.json")}
    rows = [line.split("|")[1] for line in SCHEDULES.splitlines() if ".json`" in line and line.startswith("|")]
    named = set()
    for row in rows:
        first, *others = re.findall(r"`(\w+)(?:\.json)?`", row)
        named |= {first} | {first.rpartition("_")[0] + other for other in others}
    assert named == files


def test_the_options_of_the_trainers_page_are_those_of_the_trainers() -> None:
    for trainer, title in (("TickTock", "## TickTock"), ("L0Trainer", "## L0Trainer")):
        part = TRAINERS.split(title)[1].split("\n## ")[0]
        rows = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
        shown = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
        taken = set(option_names(registry.get("trainers", trainer))) - set(FIXED["trainer"])
        taken -= {name for name, flag in FLAGS.items() if "trainer" in flag.readers}
        assert sorted(shown) == sorted(taken)


EXAMPLES = re.findall(
    r"## (.*?)\n(?:(?!\n## ).)*?```python\nimport torch\n(.*?)```",
    (ROOT / "docs" / "any_network.md").read_text(encoding="utf-8"),
    flags=re.DOTALL,
)


def test_all_examples_for_networks_of_ones_own_were_found() -> None:
    assert [title.split()[-1] for title, _ in EXAMPLES] == ["torchvision", "concatenations", "transformer", "why"]


#: a large network, which `make coverage` prunes too
LARGE = "A ResNet50 of torchvision"


@pytest.mark.parametrize(
    "title", [pytest.param(one, marks=[pytest.mark.slow] if one == LARGE else []) for one, _ in EXAMPLES]
)
def test_example_for_a_network_of_ones_own(title: str) -> None:
    code = "import torch\n" + dict(EXAMPLES)[title]
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    if "ResNet50" in title:
        assert re.fullmatch(r"0\.(49|50|51) of the multiply-adds are gone\n", run.stdout)
    if "transformer" in title:
        assert "reduced over: LayerNorm" in run.stdout


def test_commands_about_robustness_were_found() -> None:
    assert len(ATTACKS) >= 7


@pytest.mark.parametrize("command", ATTACKS)
def test_command_about_robustness(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for name, criterion in (("MY_DENSE_RUN", "EmptyCrit"), ("MY_RUN", "SNAP")):
        if not list((folder / "robust").glob(f"*{name}")):
            plain = f"--model LeNet5 --prune_criterion {criterion} --run_name {name} --results_dir robust"
            assert main([*plain.split(), *SHORT, *PLAIN]) == 0
        command = command.replace(f"results/{name}", str(next((folder / "robust").glob(f"*{name}"))))
    words = [*shlex.split(command)[2:], "--results_dir", "robust", "--limit_test_batches", "2", *NARROW]
    if "--attack" in words:
        words += ["--attack_samples", "4"]
    if "10000" in words:
        words[words.index("10000")] = "5"
    assert main(words) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert (folder / last / "report.json").is_file()


def test_the_script_about_robustness_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", ROBUSTNESS, flags=re.DOTALL)
    exec(compile(script, "robustness.md", "exec"), {})
    assert re.fullmatch(r"\[0\.\d+, 0\.\d+\] \[.*\]\n", capsys.readouterr().out)


def test_every_option_of_a_tester_is_in_its_guide() -> None:
    for name in registry.names("testers"):
        for option in option_names(registry.get("testers", name)):
            if option != "options":
                assert re.search(rf"--{option} |tester\.{option}=", ROBUSTNESS), (name, option)
    assert all(f"| {name} |" in ROBUSTNESS for name in [*EVERY_ATTACK, "all"])
