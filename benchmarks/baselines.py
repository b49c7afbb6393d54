"""Compare every method with the dense network, on one network and data set, with the same epochs and seed.

`python -m benchmarks.baselines --model LeNet5 --data_set FASHION --epochs 8` runs the methods one after the other
in separate processes, and prints a table in Markdown: test accuracy and its difference to the dense network,
weight and node sparsity, and the factor by which multiply-adds of training decreased. Existing runs are not
repeated.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
DENSE = "EmptyCrit"
#: titles of the columns
HEAD = (
    "method", "accuracy", "difference to dense, points", "pruned weights", "pruned nodes",
    "training MACs, dense / pruned",
)  # fmt: skip
#: pruning during training: in the middle third of the epochs, followed by fine-tuning
DURING = "--prune_delay {early} --prune_freq 1"
#: name -> flags; {limit} is the share of weights for methods that prune weights, {nodes} the share of nodes for
#: the others; the sparsity under a penalty depends on its coefficient, here half to nine tenths of the weights
METHODS = {
    DENSE: "--prune_criterion EmptyCrit",
    "UnstructuredRandom": "--prune_criterion UnstructuredRandom --pruning_limit {limit}",
    "SNIP": "--prune_criterion SNIP --pruning_limit {limit}",
    "SNIPit": "--prune_criterion SNIPit --pruning_limit {limit}",
    "SNIPitDuring": f"--prune_criterion SNIPitDuring --pruning_limit {{limit}} {DURING}",
    "GRASP": "--prune_criterion GRASP --pruning_limit {limit}",
    "SynFlow": "--prune_criterion SynFlow --pruning_limit {limit}",
    "IMP": f"--prune_criterion IMP --pruning_limit {{limit}} {DURING} --enable_rewinding --rewind_to {{early}}",
    "HoyerSquare": "--hoyer_square --hoyer_reg 1e-2",
    "CNIP": "--prune_criterion CNIP --pruning_limit {limit}",
    "CNIPit": "--prune_criterion CNIPit --pruning_limit {limit}",
    "CNIPitDuring": f"--prune_criterion CNIPitDuring --pruning_limit {{limit}} {DURING}",
    "StructuredRandom": "--prune_criterion StructuredRandom --pruning_limit {nodes}",
    "SNAP": "--prune_criterion SNAP --pruning_limit {nodes}",
    "SNAPit": "--prune_criterion SNAPit --pruning_limit {nodes}",
    "SNAPitDuring": f"--prune_criterion SNAPitDuring --pruning_limit {{nodes}} {DURING}",
    "EfficientConvNets": "--prune_criterion EfficientConvNets --pruning_limit {nodes}",
    "GroupHoyerSquare": "--group_hoyer_square --hoyer_reg 0.3",
    "GateDecorators": "--prune_criterion GateDecorators --pruning_limit {nodes}",
    "L0": "--l0 --l0_reg 1",
}


@dataclass(frozen=True)
class Setting:
    """Settings of all methods."""

    model: str
    data_set: str
    epochs: int
    seed: int
    limit: float
    nodes: float
    results: Path
    extra: tuple[str, ...]

    def command(self, name: str) -> list[str]:
        """Return the command line of one method, without the interpreter."""
        early = max(0, self.epochs // 3 - 1)
        flags = METHODS[name].format(limit=self.limit, nodes=self.nodes, early=early)
        shared = f"--model {self.model} --data_set {self.data_set} --epochs {self.epochs} --seed {self.seed}"
        return ["main.py", *shlex.split(shared), *shlex.split(flags), *self.extra]

    def folder(self, name: str) -> Path:
        """Return the folder of the runs of one method."""
        return self.results / name


def run(setting: Setting, name: str) -> dict[str, Any]:
    """Return the report of a method, after running it if necessary."""
    return report_of(setting.command(name), setting.folder(name))


def report_of(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the report of the run in a folder, after running the command if there is none."""
    found = sorted(folder.glob("*/report.json"))
    if not found:
        own = ["--results_dir", str(folder), "--plot_weights_freq", "0", "--progress", "off"]
        subprocess.run([sys.executable, *command, *own], check=True, cwd=ROOT, stdout=sys.stderr)
        found = sorted(folder.glob("*/report.json"))
    report: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))
    return report


def row(name: str, report: dict[str, Any], dense: dict[str, Any]) -> str:
    """Format one row of the table."""
    accuracy, reference = report["pruned"]["accuracy"], dense["pruned"]["accuracy"]
    macs = dense["train"]["cumulative_macs"] / max(1, report["train"]["cumulative_macs"])
    reached = report["reached"]
    shares = f"{100 * reached['weight_sparsity']:.1f} % | {100 * reached['node_sparsity']:.1f} %"
    return f"| {name} | {accuracy:.4f} | {100 * (accuracy - reference):+.2f} | {shares} | {macs:.2f} |"


@click.command()
@click.option("--model", default="LeNet5", show_default=True)
@click.option("--data_set", default="FASHION", show_default=True)
@click.option("--epochs", default=8, show_default=True)
@click.option("--seed", default=333, show_default=True)
@click.option("--limit", default=0.98, show_default=True, help="Share of the weights to prune.")
@click.option("--nodes", default=0.8, show_default=True, help="Share of the nodes to prune.")
@click.option("--only", multiple=True, type=click.Choice(list(METHODS)), help="These methods; repeatable.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/baselines"), show_default=True)
@click.argument("extra", nargs=-1)
def main(
    model: str, data_set: str, epochs: int, seed: int, limit: float, nodes: float, only: Sequence[str],
    results: Path, extra: tuple[str, ...],
) -> None:  # fmt: skip
    """Run every method and print the table; EXTRA, after `--`, is passed to each command."""
    setting = Setting(model, data_set, epochs, seed, limit, nodes, results.absolute(), extra)
    dense = run(setting, DENSE)
    print(f"| {' | '.join(HEAD)} |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in only or METHODS:
        print(row(name, run(setting, name), dense), flush=True)


if __name__ == "__main__":
    main()
