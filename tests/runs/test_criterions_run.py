"""Every criterion by the command line, shortly; modes, rates, rewinding and inputs of the first layer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import registry
from secateur.framework.storage.checkpoint import load_model
from tests.command_line import Run, run_main

SMALL = (
    "--model LeNet5 --epochs 3 --batch_size 32 --limit_train_batches 2 --limit_test_batches 1 --threads 1 "
    "--progress off --val_share 0.1 --plot_weights_freq 0"
)


Launch = Callable[..., Run]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Call main.py in an empty folder, on very little data."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_main(tmp_path, *SMALL.split(), *arguments)


def refused(run: Run, *words: str) -> None:
    assert run.code == 2
    assert run.err.startswith("error: ") and run.err.count("\n") == 1
    assert all(word in run.err for word in words), run.err
    assert not list(Path.cwd().iterdir())


THRESHOLDS = ("HoyerSquare", "GroupHoyerSquare")


#: one of each kind; the others are slow tests
FAST = ("SNIP", "GRASP", "CNIP", "FPGM", "TaylorGate")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in registry.names("criterions")
        if name != "EmptyCrit"
    ],
)
def test_every_criterion_prunes_a_run_to_the_sparsity_asked_for(launch: Launch, name: str) -> None:
    run = launch("--prune_criterion", name, "--pruning_limit", "0.7", "--snip_steps", "1")
    assert run.code == 0, run.err
    granularity = registry.describe("criterions", name).granularity
    reached = run.report["reached"]["node_sparsity" if granularity == "channel" else "weight_sparsity"]
    if name in THRESHOLDS:
        assert run.report["asked_sparsity"] is None
        assert f"{name} prunes by a fixed threshold, 0.001: --pruning_limit has no effect" in run.out
        assert "by a fixed threshold" in run.out
    else:
        assert run.report["asked_sparsity"] == 0.7
        assert reached == pytest.approx(0.7, abs=0.02)
    nothing = name in THRESHOLDS and reached == 0
    assert len(run.report["warnings"]) == nothing and all(
        "nothing was pruned" in one for one in run.report["warnings"]
    )
    loaded = load_model(run.folder.checkpoint("LeNet5"))
    assert bool(len(Masks(loaded))) == (granularity != "channel")
    assert (sum(p.numel() for p in loaded.parameters()) < 142_798) == (
        granularity != "weight" and name != THRESHOLDS[1]
    )
    outer = {"weight": True, "both": True, "channel": False}[granularity]
    assert run.config["outer_layer_pruning"] is outer


@pytest.mark.parametrize(
    ("mode", "name"), [("hoyer_square", "HoyerSquare"), ("group_hoyer_square", "GroupHoyerSquare")]
)
def test_a_mode_chooses_loss_and_criterion(launch: Launch, mode: str, name: str) -> None:
    run = launch(f"--{mode}", "--prune_delay", "0", "--prune_freq", "1", "--hoyer_reg", "0.5")
    assert run.code == 0, run.err
    assert (run.config["loss"], run.config["prune_criterion"]) == (name, name)
    assert f'preset: loss = "{name}" (--{mode})' in run.out
    penalties = [row["penalty/train"] for row in run.rows if "penalty/train" in row]
    assert penalties[0] > 1 and penalties[1] > 1
    pruned = name == "HoyerSquare"  # after two epochs of two batches no filter of LeNet5 is below the threshold
    assert (penalties[2] == 0) is pruned
    assert run.rows[-1]["sparse/weight"] > 0 or not pruned
    told = [one for one in run.report["warnings"] if "nothing was pruned, no score is below the threshold" in one]
    assert (
        len(told) == (not pruned) and ("GroupHoyerSquare: nothing was pruned" in run.out + run.err) is not pruned
    )


def test_a_mode_leaves_alone_what_the_user_chose(launch: Launch) -> None:
    run = launch("--hoyer_square", "--prune_criterion", "Magnitude", "--hoyer_reg", "1e-6")
    assert (run.config["loss"], run.config["prune_criterion"]) == ("HoyerSquare", "Magnitude")
    run = launch("--group_hoyer_square", "--loss", "CrossEntropy")
    assert (run.config["loss"], run.config["prune_criterion"]) == ("CrossEntropy", "GroupHoyerSquare")


def test_two_modes_exclude_each_other(launch: Launch) -> None:
    refused(launch("--hoyer_square", "--group_hoyer_square"), "--hoyer_square and --group_hoyer_square exclude")


def test_a_pruning_rate_alone_is_the_limit_of_random_weights(launch: Launch) -> None:
    run = launch("--prune_criterion", "UnstructuredRandom", "--pruning_rate", "0.6")
    assert run.report["reached"]["weight_sparsity"] == pytest.approx(0.6, abs=1e-4)
    assert "--pruning_rate 0.6 is used as --pruning_limit 0.6" in run.out
    assert run.config["pruning_limit"] == 0.6 and "pruning_rate" not in run.config
    both = launch("--prune_criterion", "UnstructuredRandom", "--pruning_rate", "0.6", "--pruning_limit", "0.3")
    assert both.report["reached"]["weight_sparsity"] == pytest.approx(0.3, abs=1e-4)
    other = launch("--prune_criterion", "SNIP", "--pruning_rate", "0.6")
    assert other.report["reached"]["weight_sparsity"] == pytest.approx(0.5, abs=1e-4)
    for run in (both, other):
        assert run.out.count("--pruning_rate has no effect") == 1


def test_weights_never_grow_again(launch: Launch) -> None:
    refused(launch("--growing_rate", "0.2"), "--growing_rate 0.2", "only 0 is allowed")
    assert launch("--growing_rate", "0").code == 0


def test_a_run_rewinds_and_says_so(launch: Launch) -> None:
    run = launch("--prune_criterion", "IMP", "--enable_rewinding", "--rewind_epoch", "1", "--epochs", "4")
    assert run.code == 0, run.err
    assert run.config["rewind_to"] == 1 and run.config["enable_rewinding"] is True
    assert run.out.count("rewound to the network after 1 epoch\n") == 2
    assert run.report["train"]["rewinds"] == [
        {"after_epochs": 2, "to_epochs": 1}, {"after_epochs": 3, "to_epochs": 1}
    ]  # fmt: skip
    assert [row.get("rewinds") for row in run.rows] == [None, None, 1, 2, 2]
    again = launch("--config", run.folder.config, "--epochs", "4")
    assert again.folder.checkpoint("LeNet5").read_bytes() == run.folder.checkpoint("LeNet5").read_bytes()


@pytest.mark.parametrize("name", ["SNAPitDuring", "CNIPitDuring"])
def test_cut_networks_rewind_too(launch: Launch, name: str) -> None:
    run = launch("--prune_criterion", name, "--enable_rewinding", "--optimizer", "SGD", "--epochs", "4")
    assert run.code == 0, run.err
    assert run.out.count("rewound to the initial network") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--prune_criterion IMP --rewind_to 3", "--rewind_to 3 is later than the first pruning, after 2 epochs"),
        ("--prune_criterion SNIP", "criterions that prune during or after training"),
        ("--prune_criterion EmptyCrit", "criterions that prune during or after training"),
        ("--prune_criterion SNAPitDuring --fold", "--fold and --enable_rewinding exclude each other"),
        ("--prune_criterion IMP --rewind_to -1", "--rewind_to must be at least 0"),
    ],
)
def test_rewinding_that_cannot_be_is_refused(launch: Launch, arguments: str, words: str) -> None:
    refused(launch("--enable_rewinding", *arguments.split()), words)


def test_a_rewind_point_without_rewinding_is_noted(launch: Launch) -> None:
    run = launch("--prune_criterion", "IMP", "--rewind_to", "1")
    assert "--rewind_to has no effect: it is for --enable_rewinding" in run.out
    assert "rewound" not in run.out and run.report["train"]["rewinds"] == []


def test_inputs_of_the_first_layer_go_with_the_channels(launch: Launch) -> None:
    flags = ["--model", "LeNet300", "--prune_criterion", "SNAPit", "--pruning_limit", "0.8"]
    run, plain = launch(*flags, "--outer_layer_pruning"), launch(*flags)
    assert run.code == 0, run.err
    reached = run.report["reached"]
    assert reached["inputs"] == 784 and 0 < reached["inputs_left"] < 784
    assert "inputs" not in plain.report["reached"]
    assert reached["node_sparsity"] == pytest.approx(0.8, abs=0.005)
    assert f"{reached['inputs_left']} of 784 inputs kept" in run.out
    model = load_model(run.folder.checkpoint("LeNet300"))
    weight = model.get_parameter("features.1.weight")
    assert weight.shape[1] == 784 and int((weight != 0).any(0).sum()) == reached["inputs_left"]
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)  # class outputs stay
    # and on from the checkpoint
    on = launch(*flags[:-1], "0.9", "--outer_layer_pruning", "--checkpoint_name", run.folder.name)
    assert on.code == 0, on.err
    assert on.report["reached"]["inputs_left"] <= reached["inputs_left"]
    tested = launch("--eval", "--checkpoint_name", on.folder.name, "--model", "LeNet300")
    assert tested.report["accuracy"] == on.report["pruned"]["accuracy"]


@pytest.mark.parametrize("name", ["TFO", "TaylorWeight"])
def test_taylor_terms_of_weights_rank_the_inputs(launch: Launch, name: str) -> None:
    flags = (
        f"--model LeNet300 --prune_criterion {name} --pruning_limit 0.8 --schedule before --outer_layer_pruning"
    )
    run = launch(*flags.split())
    assert run.code == 0, run.err
    reached = run.report["reached"]
    assert reached["inputs"] == 784 and 0 < reached["inputs_left"] < 784
    assert reached["node_sparsity"] == pytest.approx(0.8, abs=0.005)


def test_a_criterion_that_cannot_rank_inputs_refuses_the_flag(launch: Launch, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "criterions").mkdir()
    (folder / "criterions" / "Blind.py").write_text(
        "import torch\nfrom framework import Criterion\n\n\nclass Blind(Criterion):\n"
        '    """Channels alone."""\n\n    granularity = "channel"\n\n'
        "    def score(self, model, batches, loss, groups=None):\n"
        "        return {name: torch.ones(group.channels) for name, group in groups.items()}\n"
    )
    refused(
        launch("--plugins", folder, "--prune_criterion", "Blind", "--outer_layer_pruning"),
        "--outer_layer_pruning: Blind cannot rank the inputs of the network",
    )


MOVED = """
from secateur import After, Criterion, UsageError, prunable_weights


class Moved(Criterion):
    \"\"\"Distance of each weight from its initial value.\"\"\"

    granularity = "weight"
    schedule = After()
    uses_initial_weights = {}

    def start(self, model):
        self.initial = {{name: weight.detach().clone() for name, weight in prunable_weights(model).items()}}

    def score(self, model, batches, loss, groups=None):
        scores = {{n: (w.detach() - self.initial[n]).abs() for n, w in prunable_weights(model).items()}}
        if not any(score.any() for score in scores.values()):
            raise UsageError("no weight has moved")
        return scores
"""


@pytest.mark.parametrize("says", [True, False])
def test_a_plug_in_with_initial_weights_of_its_own_says_so(
    launch: Launch, tmp_path_factory: pytest.TempPathFactory, says: bool
) -> None:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "criterions").mkdir()
    (folder / "criterions" / "Moved.py").write_text(MOVED.format(says))
    flags = ("--plugins", folder, "--prune_criterion", "Moved")
    if says:
        refused(launch(*flags, "--schedule", "before"), "Moved prunes before training")
        run = launch(*flags)
        assert run.code == 0, run.err
        assert run.report["reached"]["weight_sparsity"] == pytest.approx(0.5, abs=0.001)
    else:
        refused(launch(*flags), "no weight has moved")


def test_fewer_images_of_a_class_than_wanted_are_warned_of(launch: Launch) -> None:
    run = launch("--prune_criterion", "GRASP", "--val_share", "0.97", "--epochs", "1")
    assert run.code == 0, run.err
    assert "GRASP scores with 25 images of each class, the smallest class has" in run.out
    assert len(run.report["warnings"]) == 1


def test_the_passes_of_scoring_are_counted(launch: Launch) -> None:
    """One pass of 5 batches, or of 250 images the threefold for a second derivative."""
    macs, batch = 497_160, 32
    snip = launch("--prune_criterion", "SNIP", "--epochs", "1").report["train"]
    grasp = launch("--prune_criterion", "GRASP", "--epochs", "1").report["train"]
    assert snip["cumulative_macs"] == 3 * macs * (5 + 2) * batch
    assert grasp["cumulative_macs"] == 3 * macs * (3 * 250 + 2 * batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SNAPitDuring", "StructuredGRASP", "FPGM", "GroupHoyerSquare", "CNIPit"])
def test_residual_networks_train_with_every_kind_of_structured_pruning(launch: Launch, name: str) -> None:
    extra = ["--outer_layer_pruning"] if name != "CNIPit" else []
    run = launch("--model", "ResNet18", "--prune_criterion", name, "--image_size", "16", *extra)
    assert run.code == 0, run.err
    if name not in ("GroupHoyerSquare", "CNIPit"):
        assert run.report["reached"]["node_sparsity"] == pytest.approx(0.5, abs=0.02)
        assert run.report["reached"]["inputs"] == 1 == run.report["reached"]["inputs_left"]
