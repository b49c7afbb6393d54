"""The command oracle from end to end: what it leaves, and what it refuses."""

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import channel_groups, load_model
from secateur.framework.plugins.registry import build, registry
from secateur.framework.settings.oracle_config import STUDY_FLAGS, chosen_criterions
from secateur.framework.studies.oracle.correlation import MEASURES, correlation
from secateur.framework.studies.oracle.study import REFERENCES
from secateur.utils.loading.loaders import make_loaders
from tests import ROOT
from tests.command_line import Run, run_main

SMALL = "--batch_size 32 --epochs 1 --limit_train_batches 8 --limit_test_batches 1 --plot_weights_freq 0"
QUICK = ("--threads", "1", "--progress", "off")
FEW = "TaylorGate,WeightNorm,BNWeight"
BARE = '''
from torch import nn


class Bare(nn.Sequential):
    """Two layers without a norm."""

    def __init__(self, *, in_channels=1, num_classes=10, image_size=28):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * image_size**2, 6), nn.ReLU(),
                         nn.Linear(6, num_classes))
'''


def launch(place: Path, *arguments: object, pictures: bool = False) -> Run:
    """Call main.py in `place`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_files", "_classes"):  # plug-ins are forgotten afterwards
            patch.setattr(registry, name, copy.deepcopy(getattr(registry, name)))
        patch.setattr(registry, "folders", list(registry.folders))
        if not pictures:
            patch.setattr("secateur.framework.studies.oracle.plots.draw_study", lambda *_: [])
        return run_main(place, *arguments, *QUICK)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained LeNet5, one pruned, and other networks."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "mine" / "models").mkdir(parents=True)
    (folder / "mine" / "models" / "Bare.py").write_text(BARE)
    for flags in (
        "--plugins mine --model Bare --prune_criterion EmptyCrit",
        "--model LeNet300 --prune_criterion EmptyCrit", "--model LogisticRegression --prune_criterion EmptyCrit",
        "--model LeNet5 --prune_criterion SNAP --run_name pruned",
        "--model LeNet5 --prune_criterion EmptyCrit --run_name dense",
    ):  # fmt: skip
        assert launch(folder, *SMALL.split(), *flags.split()).code == 0
    return folder


def run_of(place: Path, name: str) -> Path:
    """The run folder whose name ends so."""
    (found,) = (place / "results").glob(f"*_{name}")
    return found


@pytest.fixture(scope="module")
def study(place: Path) -> Run:
    """Of the dense LeNet5, by three criterions."""
    found = launch(place, "oracle", "--checkpoint_name", run_of(place, "dense"), "--criterions", FEW,
                   "--samples", "45", "--batch_size", "16", "--run_name", "study", pictures=True)  # fmt: skip
    assert found.code == 0, found.err
    return found


def test_the_numbers_are_those_of_the_checkpoint_on_training_images(place: Path, study: Run) -> None:
    model = load_model(run_of(place, "dense") / "models" / "LeNet5_finished.safetensors")
    loaders = make_loaders(build("datasets", "FASHION_MINI"), batch_size=16, seed=333)
    batches = loaders.scoring_batches("balanced", batches=None, samples=45, batch_size=16, seed=333, step=0)
    targets = torch.cat([y for _, y in batches])
    assert torch.bincount(targets).tolist() == [4] * 10
    loss = build("losses", "CrossEntropy")
    groups = channel_groups(model, batches[0][0])
    found = study.oracle
    assert (found["samples"], found["units"], found["batch_size"]) == (40, 226, 16)
    names = ("Oracle", "TaylorGate")
    scores = {name: build("criterions", name).score(model, batches, loss, groups) for name in names}
    for layer, numbers in found["layers"].items():
        torch.testing.assert_close(torch.tensor(numbers["squared"]), scores["Oracle"][layer], rtol=1e-3, atol=1e-9)
        mine = torch.tensor(found["criterions"]["TaylorGate"]["scores"][layer])
        torch.testing.assert_close(mine, scores["TaylorGate"][layer])
        assert numbers["channels"] == list(range(numbers["units"]))


def test_the_correlations_are_those_of_the_numbers_beside_them(study: Run) -> None:
    found = study.oracle
    assert list(found["references"]) == list(REFERENCES)
    for name in FEW.split(","):
        one = found["criterions"][name]
        for reference in REFERENCES:
            wanted = {layer: precise(numbers[reference]) for layer, numbers in found["layers"].items()}
            scores = {layer: precise(one["scores"][layer]) for layer in wanted}
            judged = one["correlation"][reference]
            together = (torch.cat(list(part.values())) for part in (scores, wanted))
            assert judged["all"] == pytest.approx(correlation(*together))
            for layer, row in judged["layers"].items():
                assert row == pytest.approx(correlation(scores[layer], wanted[layer]))
            for measure in MEASURES:
                values = [row[measure] for row in judged["layers"].values()]
                assert judged["layer_mean"][measure] == pytest.approx(sum(values) / len(values))


def precise(numbers: list[float]) -> torch.Tensor:
    """In float64."""
    return torch.tensor(numbers, dtype=torch.float64)


def test_taylor_tells_the_oracle_better_than_the_norm_of_the_weights(study: Run) -> None:
    found = study.oracle["criterions"]
    assert found["TaylorGate"]["correlation"]["squared"]["all"]["spearman"] > 0.8
    assert list(found)[0] == "TaylorGate"
    assert found["WeightNorm"]["correlation"]["squared"]["all"]["spearman"] < 0.5


def test_a_study_leaves_a_run_folder_with_table_pictures_and_everything_to_repeat_it(
    place: Path, study: Run
) -> None:
    names = {path.name for path in study.folder.path.iterdir()}
    assert {
        "codebase",
        "command.txt",
        "config.yaml",
        "environment.json",
        "output",
        "plots",
        "oracle.json",
    } <= names
    pictures = {path.name for path in (study.folder.path / "plots").iterdir()}
    assert pictures == {"oracle.png", *(f"oracle_{name}.png" for name in FEW.split(","))}
    assert all((study.folder.path / "plots" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    log = (study.folder.path / "output" / "log.txt").read_text()
    for text in ("TaylorGate", "226 units in 4 layers", "40 training images"):
        assert text in study.out and text in log
    again = launch(place, "oracle", "--config", study.folder.path / "config.yaml", "--run_name", "again")
    assert again.code == 0, again.err
    assert without_times(again.oracle) == without_times(study.oracle)


def without_times(data: Any) -> Any:
    """Everything that is equal for equal seeds."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key != "seconds"}
    return [without_times(one) for one in data] if isinstance(data, list) else data


def test_another_seed_takes_other_images(place: Path, study: Run) -> None:
    other = launch(place, "oracle", "--checkpoint_name", run_of(place, "dense"), "--criterions", "WeightNorm",
                   "--samples", "40", "--batch_size", "16", "--seed", "5")  # fmt: skip
    assert other.oracle["layers"]["features.0"]["signed"] != study.oracle["layers"]["features.0"]["signed"]


def test_a_pruned_network_names_its_channels_by_their_places_in_the_dense_one(place: Path) -> None:
    found = launch(place, "oracle", "--checkpoint_name", run_of(place, "pruned"), "--criterions", "WeightNorm",
                   "--samples", "10")  # fmt: skip
    model = load_model(run_of(place, "pruned") / "models" / "LeNet5_finished.safetensors")
    groups = channel_groups(model, torch.zeros(1, 1, 28, 28))
    assert found.oracle["units"] < 226
    for name, layer in found.oracle["layers"].items():
        assert layer["channels"] == groups[name].origin.tolist()


def test_the_newest_finished_run_is_taken_where_none_is_named_and_the_group_takes_the_flags_too(
    place: Path,
) -> None:
    found = launch(place, "--model", "LeNet300", "oracle", "--samples", "10", "--criterions", "TFO")
    assert found.code == 0, found.err
    assert "LeNet300_finished" in found.oracle["checkpoint"] and found.oracle["units"] == 400


def test_protected_layers_are_not_measured(place: Path) -> None:
    found = launch(place, "oracle", "--checkpoint_name", run_of(place, "dense"), "--criterions", "L1",
                   "--samples", "10", "--protect", "features.0")  # fmt: skip
    assert "features.0" not in found.oracle["layers"]
    assert found.oracle["protected"]["features.0"] == "protected by name: features.0"


@pytest.mark.slow
def test_all_criterions_that_can_score_the_network_are_compared(place: Path) -> None:
    found = launch(place, "oracle", "--plugins", "mine", "--model", "Bare", "--samples", "20")
    assert found.code == 0, found.err
    names, _ = chosen_criterions(("all",))
    numbers = found.oracle
    assert sorted([*numbers["criterions"], *numbers["left_out"]]) == registry.names("criterions")
    without_norm = {"BN", "BNTaylor", "BNWeight", "NvidiaFisher"}
    assert set(names) - set(numbers["criterions"]) == without_norm
    assert all("batch norm" in numbers["left_out"][name] for name in without_norm)
    assert "left out: BN" in found.out and "ranks weights" in found.out


GUIDE = (ROOT / "docs" / "oracle.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python main.py oracle .*$", GUIDE, flags=re.MULTILINE)


def test_the_guide_has_commands_and_says_what_is_compared() -> None:
    assert len(COMMANDS) >= 3
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, flags=re.MULTILINE)[: len(REFERENCES)] == list(REFERENCES)
    assert set(re.findall(r"`--(\w+)", GUIDE)) <= {*STUDY_FLAGS, "config", "eval"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_guide(command: str, place: Path) -> None:
    words = shlex.split(command.replace("results/MY_RUN", f"results/{run_of(place, 'dense').name}"))[2:]
    few = [] if "--criterions" in words else ["--criterions", "TFO"]
    found = launch(place, *words, "--samples", "20", *few)
    assert found.code == 0, found.err
    assert found.oracle["samples"] == 20


BAD = {
    "unknown criterion": ("--criterions TaylorGat", ["'TaylorGat'", "did you mean 'TaylorGate'?"]),
    "criterion of weights": ("--criterions SNIP", ["SNIP", "ranks weights"]),
    "norms where there are none": (
        "--plugins mine --model Bare --criterions BNWeight",
        ["--criterions BNWeight", "batch norm"],
    ),
    "no samples": ("--samples 0", ["--samples must be at least 1, got 0"]),
    "no number": ("--samples many", ["--samples must be an integer, got 'many'"]),
    "fewer samples than classes": ("--samples 9", ["9 scoring samples are too few for 10 classes"]),
    "more samples than there are": ("--samples 60000", ["60000", "6000 training images of every class"]),
    "missing run": ("--checkpoint_name nowhere", ["--checkpoint_name nowhere", "results/nowhere"]),
    "missing checkpoint": ("--checkpoint_model LeNet5_bets", ["LeNet5_bets", "did you mean 'LeNet5_best'?"]),
    "another network": ("--model LeNet55", ["'LeNet55'", "did you mean 'LeNet5'?"]),
    "nothing to remove": ("--model LogisticRegression", ["LogisticRegression has no channel", "model output"]),
    "unknown flag": ("--sampels 5", ["--sampels", "'--samples'"]),
    "flag of training": ("--epochs 5", ["unknown flag '--epochs'"]),
    "unknown layer": ("--protect feature.0", ["'feature.0'"]),
    "options of a criterion": ("--set criterion.divisor=n2", ["--set criterion"]),
    "extra word": ("now", ["now"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(place: Path, case: str) -> None:
    words, expected = BAD[case]
    before = sorted((place / "results").iterdir())
    found = launch(place, "oracle", *words.split())
    assert found.code == 2, found.err
    assert found.err.startswith("error: ") and found.err.count("\n") == 1
    for text in expected:
        assert text in found.err
    assert found.out == "" and sorted((place / "results").iterdir()) == before


def test_flags_of_training_before_the_command_are_refused(place: Path) -> None:
    found = launch(place, "--epochs", "3", "oracle")
    assert found.code == 2 and "--epochs does not apply to the command oracle" in found.err


def test_a_file_that_is_no_config_is_refused(place: Path) -> None:
    assert "nowhere.yaml" in launch(place, "oracle", "--config", "nowhere.yaml").err


def test_the_help_names_the_flags_without_importing_torch() -> None:
    script = "import sys, main; main.main(['oracle', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--samples", "--criterions", "--checkpoint_name", "--seed", "Oracle study:"):
        assert flag in done.stdout
