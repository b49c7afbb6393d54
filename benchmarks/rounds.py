"""Compare the measures of gradient flow by the number of pruning rounds: `python -m benchmarks.rounds`.

Every measure prunes three quarters of the channels of one network in 1, 5 and 25 rounds of an epoch and a pruning
step (Lubana and Dick, 2020, arXiv:2009.11839); all runs have the same number of epochs, so that with fewer rounds
the pruned network is trained longer. Prints the final test accuracy in percent. Existing runs are not repeated.
"""

from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.baselines import report_of
from secateur.framework.plugins.registry import option_names, registry

MEASURES = (
    "MagBased", "L1", "BN", "LossBased", "BiasedLoss", "BiasedLossTracked", "TFO", "Fisher", "NvidiaFisher",
    "GraspChannel", "GradPreserve",
)  # fmt: skip


@click.command()
@click.option("--model", default="VGG13", show_default=True)
@click.option("--data_set", default="FASHION", show_default=True)
@click.option("--epochs", default=30, show_default=True)
@click.option("--seed", default=333, show_default=True)
@click.option("--limit", default=0.75, show_default=True, help="Share of the channels to prune.")
@click.option("--rounds", multiple=True, type=int, default=(1, 5, 25), show_default=True)
@click.option("--samples", default=2560, show_default=True, help="Images for each scoring.")
@click.option("--only", multiple=True, type=click.Choice(MEASURES), help="These measures; repeatable.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/rounds"), show_default=True)
@click.argument("extra", nargs=-1)
def main(
    model: str, data_set: str, epochs: int, seed: int, limit: float, rounds: Sequence[int], samples: int,
    only: Sequence[str], results: Path, extra: tuple[str, ...],
) -> None:  # fmt: skip
    """Run every measure and print the table; EXTRA, after `--`, is passed to each command."""
    shared = ["main.py", "--model", model, "--data_set", data_set, "--epochs", str(epochs), "--seed", str(seed)]
    shared += ["--pruning_limit", str(limit), "--no_latency", *extra]
    print("| measure |" + "".join(f" {number} |" for number in rounds))
    print("|---|" + "---:|" * len(rounds))
    for measure in only or MEASURES:
        row = []
        for number in rounds:
            command = [*shared, "--prune_criterion", measure, "--n_rounds", str(number)]
            if "samples" in option_names(registry.get("criterions", measure)):
                command += ["--imp_samples", str(samples)]
            report = report_of(command, results.absolute() / f"{measure}_{number}")
            row.append(f" {100 * report['pruned']['accuracy']:.2f} |")
        print(f"| {measure} |" + "".join(row), flush=True)


if __name__ == "__main__":
    main()
