"""What goes together: criterions with the trainer they need, --l0 with its own; known before torch is imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.framework.commands.dense_baseline import dense_config
from secateur.framework.plugins.registry import ROOT, registry
from secateur.framework.settings.run_config import RunConfig

Command = Callable[..., Any]


@pytest.fixture
def derived(plugins: Path) -> Path:
    """A criterion, a trainer and a loss derived from ours."""
    for place, name, base in (
        ("criterions", "MyGates", "GateDecorators"),
        ("trainers", "MyTickTock", "TickTock"),
        ("trainers", "MyL0", "L0Trainer"),
        ("losses", "MyLoss", "L0CrossEntropy"),
    ):
        (plugins / place).mkdir(exist_ok=True)
        source = f"from {place}.{base} import {base}\n\n\nclass {name}({base}):\n    pass\n"
        (plugins / place / f"{name}.py").write_text(source)
    return plugins


def test_the_needed_trainer_is_read_from_the_source() -> None:
    assert registry.describe("criterions", "GateDecorators").trainer == "TickTock"
    assert registry.describe("criterions", "SNAP").trainer == registry.describe("models", "LeNet5").trainer == ""
    assert registry.derives("trainers", "L0Trainer", "DefaultTrainer")
    assert not registry.derives("trainers", "DefaultTrainer", "L0Trainer")


def test_a_wrong_pair_is_refused_without_importing_torch() -> None:
    script = """
import sys
from secateur.main import main
assert main(["--prune_criterion", "GateDecorators", "--train_scheme", "DefaultTrainer"]) == 2
assert main(["--l0", "--prune_criterion", "SNAP"]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "error: --prune_criterion GateDecorators needs --train_scheme TickTock, not DefaultTrainer",
        "error: --l0 prunes by trained gates: it needs --prune_criterion EmptyCrit, not SNAP",
    ]


def test_the_trainer_follows_from_the_criterion_unless_the_user_gave_a_derived_one(
    command: Command, derived: Path
) -> None:
    assert command("--prune_criterion", "GateDecorators").config.train_scheme == "TickTock"
    plug = ("--plugins", derived)
    assert command(*plug, "--prune_criterion", "MyGates").config.train_scheme == "TickTock"
    found = command(*plug, "--prune_criterion", "MyGates", "--train_scheme", "MyTickTock")
    assert found.code == 0 and found.config.train_scheme == "MyTickTock"
    refused = command(*plug, "--prune_criterion", "MyGates", "--train_scheme", "MyL0")
    assert refused.code == 2 and "needs --l0" in refused.err and refused.err.count("\n") == 1


def test_derived_trainers_and_losses_go_with_l0_and_only_with_it(command: Command, derived: Path) -> None:
    plug = ("--plugins", derived)
    found = command(*plug, "--l0", "--train_scheme", "MyL0", "--loss", "MyLoss")
    assert found.code == 0 and found.config.prune_criterion == "EmptyCrit"
    for flags in (("--train_scheme", "MyL0"), ("--loss", "MyLoss")):
        refused = command(*plug, *flags)
        assert refused.code == 2 and "needs --l0" in refused.err


def test_what_the_user_gives_wins_where_it_is_legal(command: Command) -> None:
    result = command("--l0", "--loss", "L0CrossEntropy", "--l0_reg", "0.3", "--beta_ema", "0")
    assert (result.config.l0, result.config.l0_reg, result.config.beta_ema) == (True, 0.3, 0.0)
    assert [note for note in result.notes if "loss" in note] == []
    assert (RunConfig().l0_reg, RunConfig().beta_ema) == (0.1, 0.999)


def test_the_dense_network_to_compare_with_has_a_plain_trainer_and_loss(derived: Path) -> None:
    registry.add_folder(derived)
    options = {"trainer": {"tick": 2}, "criterion": {"p": 1}, "model": {}}
    config = RunConfig(l0=True, prune_criterion="EmptyCrit", loss="L0CrossEntropy", train_scheme="L0Trainer")
    dense = dense_config(config)
    assert (dense.l0, dense.loss, dense.train_scheme) == (False, "CrossEntropy", "DefaultTrainer")
    gates = dense_config(RunConfig(prune_criterion="GateDecorators", train_scheme="TickTock", set=options))
    assert (gates.prune_criterion, gates.train_scheme) == ("EmptyCrit", "DefaultTrainer")
    assert gates.set == {"model": {}}
    own = dense_config(RunConfig(prune_criterion="SNAP", train_scheme="MyTickTock", loss="MyLoss", set=options))
    assert (own.train_scheme, own.loss) == ("MyTickTock", "MyLoss")
    assert own.set == {"trainer": {"tick": 2}, "model": {}}


@pytest.mark.parametrize("mode", ["hoyer_square", "group_hoyer_square"])
def test_the_dense_network_is_trained_without_the_penalty_of_a_mode(mode: str) -> None:
    loss = "HoyerSquare" if mode == "hoyer_square" else "GroupHoyerSquare"
    dense = dense_config(RunConfig(**{mode: True}, loss=loss, prune_criterion=loss, hoyer_reg=0.1))
    assert (dense.loss, dense.prune_criterion, getattr(dense, mode), dense.hoyer_reg) == (
        "CrossEntropy", "EmptyCrit", False, None,
    )  # fmt: skip
