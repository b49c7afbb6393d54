"""Attacks and corruptions from the command line, on cut and masked checkpoints."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from secateur import channel_groups, cut, load_model, save_model
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.settings.attacks import ATTACKS
from secateur.main import main
from secateur.utils.errors import UsageError
from secateur.utils.loading.loaders import make_loaders
from tests import ROOT
from tests.command_line import Run, run_main
from tests.networks import mask_channels

TINY = "--model LeNet300 --epochs 2 --limit_train_batches 20 --threads 1"
FAST = "--attack_samples 20 --attack_steps 4 --attack_binary_steps 2"


Launch = Callable[..., Run]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with three runs: dense, cut and masked; and one of another data set by its settings."""
    folder = tmp_path_factory.mktemp("attacks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("secateur.framework.reporting.plots.run.draw_all", lambda *_: [])
        for name, more in (
            ("dense", "--prune_criterion EmptyCrit"),
            ("cut", "--prune_criterion SNAP --pruning_limit 0.6"),
            ("masked", "--prune_criterion SNIP --pruning_limit 0.8"),
        ):
            assert main([*TINY.split(), *more.split(), "--results_dir", f"made_{name}"]) == 0
            (run,) = Path(f"made_{name}").iterdir()
            run.rename(folder / name)
    yield folder


@pytest.fixture
def launch(place: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Call main.py in the folder with the runs."""
    monkeypatch.chdir(place)

    def call(*arguments: object, plots: bool = False) -> Run:
        words = [word for argument in arguments for word in shlex.split(str(argument))]
        with pytest.MonkeyPatch.context() as patch:
            if not plots:
                patch.setattr(
                    "secateur.testers.AdversarialEvaluation.AdversarialEvaluation._draw", lambda *_: None
                )
            return run_main(place, "--model", "LeNet300", *words, "--threads", "1", plots=plots)

    return call


def refused(result: Run, place: Path, *expected: str) -> None:
    """Exit code 2, one line, and no run folder made."""
    assert result.code == 2, result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    for part in expected:
        assert part in result.err
    assert result.out == ""


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["cut", "masked"])
def test_every_attack_runs_on_pruned_networks_and_reports_everything(launch: Launch, checkpoint: str) -> None:
    result = launch("--eval --checkpoint_name", checkpoint, "--attack all", FAST, plots=True)
    found, folder = result.report, result.folder
    assert folder is not None
    assert found["tester"] == "AdversarialEvaluation" and found["samples"] == 20 == len(found["positions"])
    assert list(found["attacks"]) == list(ATTACKS)
    assert set(found["worst_case"]) == {"Linf", "L2", "L1"}
    for one in found["attacks"].values():
        worst = found["worst_case"][one["norm"]]["robust_accuracy"]
        curve = one["robust_accuracy"]
        assert all(low <= high for low, high in zip(worst, curve, strict=True))
        assert curve == sorted(curve, reverse=True) and curve[0] <= found["clean_accuracy"]
        for share, (low, high) in zip(curve, one["interval"], strict=True):
            assert low <= share <= high
    assert found["clean_accuracy"] == 1 - found["misclassified"] / 20
    assert (folder.plots / "robustness.png").is_file()
    shown = [name for name in ATTACKS if (folder.plots / f"examples_{name}.png").is_file()]
    assert {"LinfPGD", "L2DeepFoolAttack"} <= set(shown)
    with Image.open(folder.plots / "robustness.png") as picture:
        assert min(picture.size) > 400 and len(set(picture.convert("L").tobytes())) > 20
    for text in ("worst case", "95 % from", "8/255", "misclassified without any attack", "masked gradients"):
        assert text in result.out
    assert "LinfPGD" in folder.log.read_text()


def test_the_tester_follows_from_the_attack_and_says_so(launch: Launch) -> None:
    result = launch("--eval --checkpoint_name cut --attack FGSM --attack_samples 10")
    assert result.report["tester"] == "AdversarialEvaluation"
    assert 'recommended: test_scheme = "AdversarialEvaluation"' in result.out


def test_the_whole_test_set_is_attacked_unless_a_part_is_asked_for(launch: Launch) -> None:
    found = launch("--eval --checkpoint_name cut --attack FGSM").report
    plain = launch("--eval --checkpoint_name cut").report
    assert found["samples"] == plain["samples"] == 2000 and "positions" not in found
    assert found["clean_accuracy"] == plain["accuracy"]
    assert found["attacks"]["FGSM"]["epsilons"] == [n / 255 for n in (1, 2, 4, 8, 16)]


@pytest.fixture
def copied(place: Path) -> Iterator[Callable[..., Path]]:
    """A second folder of the pruned run, with other settings or with none."""
    made = []

    def copy(name: str, old: str = "", new: str = "") -> Path:
        folder = place / name
        made.append(folder)
        shutil.copytree(place / "cut", folder)
        settings = folder / "config.yaml"
        if old:
            assert old in settings.read_text()
            settings.write_text(settings.read_text().replace(old, new))
        else:
            settings.unlink()
        return folder

    yield copy
    for folder in made:
        shutil.rmtree(folder)


def test_an_attack_covers_the_whole_test_set_whatever_training_looked_at(
    launch: Launch, copied: Callable[..., Path]
) -> None:
    copied("little", "limit_test_batches: null", "limit_test_batches: 2")
    assert launch("--eval --checkpoint_name little --attack FGSM").report["samples"] == 2000
    assert launch("--eval --checkpoint_name little").report["samples"] < 2000
    asked = launch("--eval --checkpoint_name little --attack FGSM --limit_test_batches 1 --batch_size 50")
    assert asked.report["samples"] == 50


def test_a_checkpoint_without_settings_is_attacked_on_no_data(
    launch: Launch, copied: Callable[..., Path], place: Path
) -> None:
    copied("unknown")
    for flags in ("", "--data_set FASHION_MINI"):
        result = launch("--eval --checkpoint_name unknown --attack FGSM", flags)
        refused(result, place, "unknown has no readable config.yaml")


@pytest.mark.parametrize(
    ("attack", "options", "said"),
    [
        ("LinfPGD", "{steps: 0}", "steps must be a whole number >= 1, got 0"),
        ("CarliniWagner", "{binary_search_steps: 0}", "binary_search_steps must be a whole number >= 1, got 0"),
        ("CarliniWagner", "{steps: 1.5}", "steps must be a whole number >= 1, got 1.5"),
        ("L2RepeatedAdditiveGaussianNoiseAttack", "{repeats: -1}", "repeats must be a whole number >= 1, got -1"),
        ("L2DeepFoolAttack", "{candidates: 1}", "candidates must be a whole number >= 2, got 1"),
        ("LinfPGD", "{rel_stepsize: 0}", "rel_stepsize must be a number > 0, got 0"),
        ("DDNAttack", "{gamma: 1}", "gamma must be a number > 0 and < 1, got 1"),
        ("LinfPGD", "{random_start: 2}", "random_start must be true or false, got 2"),
    ],
)
def test_an_option_no_search_can_go_by_is_refused(
    launch: Launch, place: Path, attack: str, options: str, said: str
) -> None:
    result = launch(f"--eval --checkpoint_name cut --attack {attack} --set 'tester.attack_options={options}'")
    refused(result, place, said)
    with pytest.raises(UsageError, match=re.escape(said)):
        build("testers", "AdversarialEvaluation", attack=attack, attack_options=yaml.safe_load(options))


def test_a_part_is_balanced_and_chosen_by_the_seed(launch: Launch) -> None:
    targets = make_loaders(build("datasets", "FASHION_MINI"), batch_size=100, seed=0).test.targets
    one = launch("--eval --checkpoint_name cut --attack FGSM --attack_samples 50").report
    same = launch("--eval --checkpoint_name cut --attack FGSM --attack_samples 50").report
    other = launch("--eval --checkpoint_name cut --attack FGSM --attack_samples 50 --seed 5").report
    assert torch.bincount(targets[one["positions"]]).tolist() == [5] * 10
    assert one == same
    assert one["positions"] != other["positions"]


def test_epsilons_and_options_reach_the_attack(launch: Launch) -> None:
    found = launch(
        "--eval --checkpoint_name cut --attack FGSM,DDNAttack --attack_samples 10 --epsilons 0.5/255,L2:0.2,0.4",
        "--set tester.attack_batch_size=4 --attack_steps 5",
    ).report
    assert found["attacks"]["DDNAttack"]["epsilons"] == [0.2, 0.4]
    assert found["attacks"]["FGSM"]["epsilons"] == [0.5 / 255]
    assert found["attacks"]["DDNAttack"]["settings"] == {"steps": 5}
    original = launch(
        "--eval --checkpoint_name cut --attack CarliniWagner --attack_samples 2 --attack_steps 3",
        "--attack_binary_steps 1 --set 'tester.attack_options={initial_const: 0.001, stepsize: 0.01}'",
    ).report
    assert original["attacks"]["CarliniWagner"]["settings"] == {
        "steps": 3, "binary_search_steps": 1, "initial_const": 0.001, "stepsize": 0.01,
    }  # fmt: skip


@pytest.mark.slow
def test_cut_and_masked_twins_give_the_same_numbers(launch: Launch, place: Path) -> None:
    dense = load_model(place / "dense" / "models" / "LeNet300_finished.safetensors").eval()
    example = torch.zeros(1, 1, 28, 28)
    groups = channel_groups(dense, example)
    generator = torch.Generator().manual_seed(0)
    keep = {
        name: torch.rand(group.channels, generator=generator) < 0.5 for name, group in free_groups(groups).items()
    }
    twins = {"twin_masked": copy.deepcopy(dense), "twin_cut": copy.deepcopy(dense)}
    mask_channels(twins["twin_masked"], keep, groups)
    cut(twins["twin_cut"], keep, channel_groups(twins["twin_cut"], example))
    reports = []
    for name, model in twins.items():
        (place / name).mkdir()
        (place / name / "config.yaml").write_text((place / "dense" / "config.yaml").read_text())
        save_model(model, place / name / "models" / "LeNet300_finished.safetensors")
        reports.append(
            launch("--eval --checkpoint_name", name, "--attack FGSM,LinfPGD,L2DeepFoolAttack,DDNAttack",
                   "--attack_samples 40 --attack_steps 15").report
        )  # fmt: skip
    one, other = reports
    assert one["clean_accuracy"] == other["clean_accuracy"]
    for name in one["attacks"]:
        first, second = one["attacks"][name], other["attacks"][name]
        assert first["robust"] == pytest.approx(second["robust"], abs=1)  # a point may lie on the edge
        if "median_perturbation" in first:
            assert first["median_perturbation"] == pytest.approx(second["median_perturbation"], rel=1e-3)


def test_a_second_network_is_attacked_on_the_same_points(launch: Launch, place: Path) -> None:
    result = launch("--eval --checkpoint_name cut --compare_with dense --attack FGSM --attack_samples 30")
    found = result.report
    alone = launch("--eval --checkpoint_name dense --attack FGSM --attack_samples 30").report
    assert found["positions"] == alone["positions"]
    for key in ("attacks", "worst_case", "clean_accuracy", "misclassified", "sanity"):
        assert found["compared"][key] == alone[key]
    assert found["compared"]["network"] == "dense/LeNet300_finished"
    assert found["attacks"] != found["compared"]["attacks"]
    for name in ("cut", "dense"):
        assert f"robust accuracy in Linf: {name}/LeNet300_finished" in result.out
    assert result.folder is not None
    assert f"compare_with: {(place / 'dense').resolve()}" in result.folder.config.read_text()


def test_a_second_network_is_seen_with_its_own_normalisation(launch: Launch, place: Path) -> None:
    """The dense network, told to take plain pixels, is as good with its first layer changed to fit."""
    dense = load_model(place / "dense" / "models" / "LeNet300_finished.safetensors")
    first = next(module for module in dense.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():  # W (p - mean) / std + b of pixels p
        first.bias -= first.weight.sum(dim=1) * 0.2859 / 0.3534
        first.weight /= 0.3534
    (place / "unit").mkdir()
    save_model(dense, place / "unit" / "models" / "LeNet300_finished.safetensors")
    text = (place / "dense" / "config.yaml").read_text().replace("normalize: dataset", "normalize: unit")
    (place / "unit" / "config.yaml").write_text(text)
    command = "--eval --checkpoint_name dense --compare_with unit --attack L2DeepFoolAttack --attack_samples 30"
    found = launch(command).report
    assert found["compared"]["clean_accuracy"] == found["clean_accuracy"] > 0.5
    one, other = (
        side["attacks"]["L2DeepFoolAttack"]["median_perturbation"] for side in (found, found["compared"])
    )
    assert one == pytest.approx(other, rel=1e-2)


def test_the_dense_network_of_a_run_can_be_compared_with(launch: Launch, place: Path) -> None:
    (place / "cut" / "dense" / "models").mkdir(parents=True)
    source = place / "dense" / "models" / "LeNet300_finished.safetensors"
    (place / "cut" / "dense" / "models" / source.name).write_bytes(source.read_bytes())
    found = launch(
        "--eval --checkpoint_name cut --compare_with cut/dense --attack FGSM --attack_samples 10"
    ).report
    assert found["compared"]["network"] == "dense/LeNet300_finished"


def test_corruptions_run_from_the_command_line(launch: Launch) -> None:
    result = launch("--eval --checkpoint_name cut --test_scheme CorruptionRobustness --compare_with dense",
                    "--limit_test_batches 3")  # fmt: skip
    found = result.report
    assert {len(one["accuracy"]) for one in found["corruptions"].values()} == {5}
    assert found["corruptions"]["noise"]["accuracy"][-1] < found["clean_accuracy"]
    assert found["compared"]["samples"] == found["samples"] == 3 * 128
    assert result.folder is not None and (result.folder.plots / "corruptions.png").is_file()
    assert "mean over corruptions" in result.out


def test_accuracy_shows_the_classes_and_reports_the_matrix(launch: Launch) -> None:
    result = launch("--eval --checkpoint_name cut")
    found = result.report
    assert "Ankle boot: " in result.out and "confusion" not in result.out
    assert [sum(row) for row in found["confusion"]] == [200] * 10
    assert 0 < found["ece"] < 1 and len(found["calibration_bins"]) == 15


def test_the_settings_of_an_evaluation_repeat_it(launch: Launch) -> None:
    first = launch("--eval --checkpoint_name masked --attack FGSM --attack_samples 30 --epsilons 3/255,0.1")
    assert first.folder is not None
    again = launch("--config", first.folder.config)
    assert again.report == first.report


def test_the_settings_of_a_training_run_do_not_stand_against_an_attack(launch: Launch, place: Path) -> None:
    result = launch("--config", place / "cut" / "config.yaml", "--eval --checkpoint_name cut --attack FGSM",
                    "--attack_samples 10")  # fmt: skip
    assert result.report["tester"] == "AdversarialEvaluation"


BAD: dict[str, tuple[str, list[str]]] = {
    "unknown attack": ("--eval --attack FSGM", ["unknown attack 'FSGM'", "did you mean 'FGSM'?"]),
    "unknown attack and no checkpoint": ("--eval --checkpoint_name no --attack CarliniWager", ["'CarliniWagner'"]),
    "attack without a name": ("--eval --checkpoint_name cut --attack ,", ["no name", "FGSM"]),
    "attack in training": ("--attack FGSM", ["--attack needs --eval"]),
    "comparison in training": ("--compare_with dense", ["--compare_with needs --eval"]),
    "another data set": (
        "--eval --checkpoint_name cut --attack FGSM --data_set MNIST", ["trained on FASHION_MINI", "MNIST"],
    ),
    "another data set, by the tester's name": (
        "--eval --checkpoint_name cut --test_scheme AdversarialEvaluation --data_set KUZUSHIJI", ["KUZUSHIJI"],
    ),
    "compared with another data set": (
        "--eval --checkpoint_name cut --compare_with foreign --attack FGSM", ["data_set KUZUSHIJI", "foreign"],
    ),
    "compared with other images": (
        "--eval --checkpoint_name cut --compare_with tuned --attack FGSM", ["tuning True"],
    ),
    "compared with nothing": (
        "--eval --checkpoint_name cut --compare_with dens --attack FGSM", ["--compare_with dens"],
    ),
    "compared by a tester of one": ("--eval --checkpoint_name cut --compare_with dense", ["Accuracy evaluates"]),
    "attack by another tester": (
        "--eval --checkpoint_name cut --attack FGSM --test_scheme Accuracy", ["the tester Accuracy", "--attack"],
    ),
    "samples without an attack": ("--eval --checkpoint_name cut --attack_samples 5", ["--attack_samples"]),
    "no sample": ("--eval --checkpoint_name cut --attack FGSM --attack_samples 0", ["at least 1"]),
    "no epsilon": ("--eval --checkpoint_name cut --attack FGSM --epsilons 0", ["above 0"]),
    "epsilon of 8-bit pixels": ("--eval --checkpoint_name cut --attack LinfPGD --epsilons 8", ["8/255"]),
    "steps of a single step": ("--eval --checkpoint_name cut --attack FGSM --attack_steps 9", ["a single step"]),
    "restarts of no chance": (
        "--eval --checkpoint_name cut --attack DDNAttack --attack_restarts 3", ["DDNAttack is deterministic"],
    ),
    "binary steps of another": (
        "--eval --checkpoint_name cut --attack DDNAttack --attack_binary_steps 3", ["no binary search"],
    ),
    "two words": (
        "--eval --checkpoint_name cut --attack FGSM --set tester.attack=DDNAttack", ["tester.attack contradict"],
    ),
    "unknown option of the tester": (
        "--eval --checkpoint_name cut --attack FGSM --set tester.steps=3", ["unknown option", "attack_steps"],
    ),
    "unknown attack by an option": (
        "--eval --checkpoint_name cut --test_scheme AdversarialEvaluation --set tester.attack=DDN", ["'DDN'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_before_anything_is_loaded(
    launch: Launch, place: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, old, new in (
        ("foreign", "data_set: FASHION_MINI", "data_set: KUZUSHIJI"), ("tuned", "tuning: false", "tuning: true"),
    ):  # fmt: skip
        if not (place / name).exists():
            (place / name / "models").mkdir(parents=True)
            (place / name / "config.yaml").write_text(
                (place / "dense" / "config.yaml").read_text().replace(old, new)
            )
            (place / name / "models" / "LeNet300_finished.safetensors").write_bytes(b"not read")

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("secateur.framework.commands.assemble.build_loaders", loaded)
    monkeypatch.setattr("secateur.framework.commands.assemble.build_model", loaded)
    before = sorted((place / "results").iterdir()) if (place / "results").exists() else []
    arguments, expected = BAD[case]
    refused(launch(arguments), place, *expected)
    assert (sorted((place / "results").iterdir()) if (place / "results").exists() else []) == before


def test_a_wrong_name_is_refused_without_torch(place: Path) -> None:
    code = (
        "import sys; from secateur.main import main\n"
        "assert main(['--eval', '--attack', 'FSGM']) == 2\n"
        "assert not {'torch', 'foolbox'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
