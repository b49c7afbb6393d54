"""Measure the overhead of DefaultTrainer over a plain PyTorch loop: `python -m benchmarks.overhead`.

Every loop trains a copy of one network with 90 % of its weights set to zero by SNIP, on the same batches of
FASHION_MINI in the same order from a separate loader, with fused Adam and cross-entropy:

- bare: zero_grad, forward, loss, backward, step. No masks, metrics, clipping or checks of any kind.
- trainer: `DefaultTrainer.train_epoch` with default settings (gradients clipped to 10, loss, accuracy and a check
  for a loss that is not finite in each batch) and the pruning listener.
- trainer, masks: the same with masks on, which are applied to the gradients and, after each step, the weights.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from benchmarks.timing import Row, by_turns, head, record, show
from secateur import Masks, build, prune
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.training.hooks import manager
from secateur.framework.training.trainer import Parts, Settings, Trainer
from secateur.utils.loading.loaders import Loaders, make_loaders

TARGET = 1.03
SEED = 333
BATCH = 128


def loaders(batches: int | None = None, **options: Any) -> Loaders:
    """Return loaders of FASHION_MINI, by default without validation: 47 batches, or fewer."""
    dataset = build("datasets", "FASHION_MINI")
    given = {"val_share": 0, "limit_train_batches": batches, **options}
    return make_loaders(dataset, batch_size=BATCH, seed=SEED, **given)


def scoring_batches(found: Loaders, step: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the five scoring batches of SNIP and SNAP."""
    return found.scoring_batches(
        "random", batches=5, samples=None, batch_size=found.train.batch_size, seed=SEED, step=step
    )


def adam(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """Return the default optimizer of a run."""
    return torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=5e-5, **{"fused": True, **options})


def make_trainer(
    model: nn.Module, found: Loaders, pruner: Pruner, memory_format: torch.memory_format = torch.contiguous_format
) -> Trainer:
    """Return a DefaultTrainer with the settings of a run and the listener `pruner`."""
    parts = Parts(model, build("losses", "CrossEntropy"), adam(model), found)
    settings = Settings(epochs=1, seed=SEED, memory_format=memory_format)
    trainer: Trainer = build("trainers", "DefaultTrainer", parts=parts, settings=settings)
    trainer.hooks = manager([pruner]).hook
    return trainer


def train_bare(model: nn.Module, found: Loaders) -> Callable[[], float]:
    """Train an epoch with the plain loop; return the seconds."""
    optimizer = adam(model)

    def epoch() -> float:
        found.train.epoch = 0
        model.train()
        start = time.perf_counter()
        for inputs, targets in found.train:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        return time.perf_counter() - start

    return epoch


def train_ours(model: nn.Module, found: Loaders) -> Callable[[], float]:
    """Train an epoch with the trainer; return the seconds."""
    pruner = Pruner(build("criterions", "EmptyCrit"), {})
    trainer = make_trainer(model, found, pruner)
    pruner.run_started(trainer)

    def epoch() -> float:
        start = time.perf_counter()
        trainer.train_epoch()  # type: ignore[attr-defined]
        return time.perf_counter() - start

    return epoch


def measure(name: str, repeats: int, batches: int | None = None) -> tuple[list[Row], int]:
    """Compare epochs of the trainer with the plain loop; also return the number of disturbed measurements."""
    torch.manual_seed(SEED)
    model = build("models", name)
    prune(model, "SNIP", 0.9, batches=scoring_batches(loaders()))
    unmasked = copy.deepcopy(model)
    Masks(unmasked).drop()
    turns = by_turns(
        {
            "bare": train_bare(copy.deepcopy(unmasked), loaders(batches)),
            "trainer": train_ours(copy.deepcopy(unmasked), loaders(batches)),
            "trainer, masks": train_ours(model, loaders(batches)),
        },
        repeats,
    )
    per_batch = {
        key: f"{1000 * turns.median(key) / len(loaders(batches).train):.2f} ms a batch" for key in turns.seconds
    }
    rows = [
        turns.ratio("bare", "bare", label=f"{name}, bare loop"),
        turns.ratio("trainer", "bare", label=f"{name}, trainer without masks"),
        turns.ratio("trainer, masks", "bare", label=f"{name}, trainer with masks", target=TARGET),
    ]
    for row, key in zip(rows, per_batch, strict=True):
        row.note = per_batch[key]
    return rows, turns.disturbed


@click.command()
@click.option("--quick", is_flag=True, help="Few batches and turns.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
def main(quick: bool, file: Path | None) -> None:
    """Print the overhead of the trainer over a plain loop."""
    torch.set_flush_denormal(True)
    head()
    rows, disturbed = measure("LeNet5", 5 if quick else 31)
    more, again = measure("Conv6", 3 if quick else 11, batches=4 if quick else 16)
    rows += more
    show("An epoch, relative to a plain loop", rows)
    head(disturbed + again)
    record(file, {"overhead": rows})


if __name__ == "__main__":
    main()
