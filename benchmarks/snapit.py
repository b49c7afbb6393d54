"""Measure SNAPit on VGG16, and the training of the pruned network: `python -m benchmarks.snapit`.

The unit is one plain forward and backward pass of the dense VGG16 with a batch of 128 images (1 x 32 x 32), in
contiguous memory format, measured in the same run.

1. Pruning: SNAPit to a node sparsity of 93 %, with tracing, 7 scorings of 5 batches on the successively pruned
   networks, selecting, cutting, and measuring the memory format before and after.
2. Training: an epoch of 47 batches of DefaultTrainer on the pruned network.
3. The cut network compared with the dense one and the ratio of their multiply-adds, and a profile of its step.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.overhead import SEED, adam, loaders, make_trainer
from benchmarks.timing import Row, by_turns, head, record, show
from secateur import build
from secateur.framework.network.latency import measure_latency
from secateur.framework.network.memory_format import MEMORY_FORMATS, _measure, lay_out
from secateur.framework.network.size import count_macs
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.pruning.steps.step import step_class
from secateur.framework.schedules.base import targets
from secateur.utils.loading.batches import Batch
from secateur.utils.loading.loaders import Loaders

PRUNING_TARGET, TRAINING_TARGET = 8.0, 4.0
LIMIT, STEPS, BATCHES = 0.93, 7, 47
#: kind -> parts of the names of its operations in a step
KINDS = {
    "convolution": ("convolution",),
    "batch norm": ("batch_norm",),
    "linear": ("addmm", "aten::mm", "linear"),
    "pooling": ("pool",),
    "activation": ("leaky_relu", "dropout", "bernoulli"),
    "optimizer": ("adam", "foreach"),
}


def dense_pass(model: nn.Module, batch: Batch) -> Callable[[], float]:
    """Run one forward and backward pass, the unit; return its seconds."""

    def run() -> float:
        model.train()
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        return time.perf_counter() - start

    return run


def pruning(dense: nn.Module, found: Loaders, keep: list[nn.Module]) -> Callable[[], float]:
    """Prune with SNAPit as in a run; return the seconds. The pruned network is stored in `keep`."""

    def run() -> float:
        model = copy.deepcopy(dense)
        model.zero_grad(set_to_none=True)
        criterion = build("criterions", "SNAPit")
        start = time.perf_counter()
        batches = found.scoring_batches("random", batches=5, samples=None, batch_size=128, seed=SEED, step=0)
        step = step_class(criterion)(model, criterion, batches[0][0][:1])
        layout = MEMORY_FORMATS[_measure(model, batches[0][0][:1])]
        lay_out(model, layout)
        for number, target in enumerate(targets(LIMIT, STEPS)):
            batches = found.scoring_batches(
                "random", batches=5, samples=None, batch_size=128, seed=SEED, step=number
            )
            placed = [(inputs.contiguous(memory_format=layout), labels) for inputs, labels in batches]
            step(target, placed, nn.functional.cross_entropy)
        lay_out(model, MEMORY_FORMATS[_measure(model, batches[0][0][:1])])
        seconds = time.perf_counter() - start
        keep[:] = [model]
        return seconds

    return run


def training(model: nn.Module, found: Loaders, layout: torch.memory_format) -> Callable[[], float]:
    """Train an epoch with DefaultTrainer; return its seconds."""
    pruner = Pruner(build("criterions", "EmptyCrit"), {})
    trainer: Any = make_trainer(model, found, pruner, layout)
    pruner.run_started(trainer)

    def run() -> float:
        start = time.perf_counter()
        trainer.train_epoch()
        return time.perf_counter() - start

    return run


def in_units(dense: nn.Module, found: Loaders, repeats: int) -> tuple[list[Row], nn.Module, int]:
    """Return the cost of pruning and training in units, and the pruned network."""
    batch = found.scoring_batches("random", batches=1, samples=None, batch_size=128, seed=SEED, step=0)[0]
    keep: list[nn.Module] = []
    unit, prune = dense_pass(dense, batch), pruning(dense, found, keep)
    first = by_turns({"unit": unit, "SNAPit": prune}, repeats)
    small = keep[0]
    layout = MEMORY_FORMATS[_measure(small, batch[0][:1])]
    epochs = {"unit": unit, "epoch": training(copy.deepcopy(small), found, layout)}
    second = by_turns(epochs, 3 * repeats)
    length = len(found.train)
    rows = [
        first.ratio("SNAPit", "unit", label="SNAPit 0.93 (original 11)", target=PRUNING_TARGET),
        second.ratio(
            "epoch", "unit", label=f"epoch of {BATCHES} batches (original 5.1)", target=TRAINING_TARGET,
            scale=BATCHES / length,
        ),
    ]  # fmt: skip
    return rows, small, first.disturbed + second.disturbed


def against_dense(dense: nn.Module, small: nn.Module, batch: Batch, repeats: int) -> tuple[list[Row], int]:
    """Return the speedup of the cut network, and its reduction of multiply-adds."""
    turns = by_turns({"dense": dense_pass(dense, batch), "cut": dense_pass(small, batch)}, repeats)
    macs = count_macs(dense, batch[0])[0] / count_macs(small, batch[0])[0]
    slow, fast = measure_latency([dense, small], batch[0], batches=(1, 64), repeats=max(5, repeats), warmup=1)
    rows = [Row("multiply-adds", macs), turns.ratio("dense", "cut", label="forward and backward, batch 128")]
    rows += [Row(f"forward, batch {size}", slow[size] / fast[size]) for size in slow]
    return rows, turns.disturbed


def where(small: nn.Module, found: Loaders) -> list[Row]:
    """Return the shares of processor time in training steps of the cut network."""
    model = copy.deepcopy(small)
    optimizer = adam(model)
    model.train()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _, (inputs, labels) in zip(range(5), found.train, strict=False):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    shares = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in recorded.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return [Row(kind, share / total) for kind, share in shares.items()]


@click.command()
@click.option("--quick", is_flag=True, help="Few turns.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
def main(quick: bool, file: Path | None) -> None:
    """Print the cost of SNAPit, and the speed of the pruned network."""
    torch.set_flush_denormal(True)
    head()
    torch.manual_seed(SEED)
    found = loaders(image_size=32, val_share=0.1)  # the training images of a run
    dense = build("models", "VGG16", image_size=32)
    rows, small, disturbed = in_units(dense, found, 2 if quick else 5)
    show("Relative to a forward and backward pass of the dense network", rows, ("units", "quartiles"))
    batch = found.scoring_batches("random", batches=1, samples=None, batch_size=128, seed=SEED, step=0)[0]
    faster, again = against_dense(dense, small, batch, 3 if quick else 7)
    show("The cut network: factors relative to dense", faster, ("times", "quartiles"))
    shares = where(small, found)
    show("Profile of a training step of the cut network", shares, ("share", ""))
    head(disturbed + again)
    record(file, {"units": rows, "against dense": faster, "where": shares})


if __name__ == "__main__":
    main()
