"""Measure the cost of scoring relative to its passes: `python -m benchmarks.score`.

SNIP and SNAP score a dense VGG16 (1 x 32 x 32) with five batches of 128, with given channel groups, compared with
five plain forward and backward passes over the same batches in training mode, as in a training step without its
optimizer. Peak memory is the largest sum of live tensor storages, including the network's, recorded by a dispatch
mode; it is compared with that of one training step with plain SGD on one such batch.
"""

import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.overhead import SEED, scoring_batches
from benchmarks.timing import Row, by_turns, head, record, show
from secateur import build, channel_groups
from secateur.utils.loading.batches import Batch
from secateur.utils.loading.loaders import make_loaders

TIME_TARGET, MEMORY_TARGET = 1.05, 1.0


class Peak(TorchDispatchMode):
    """Records the bytes of all live storages and their peak, including backward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.now = self.most = 0
        for tensor in [*model.parameters(), *model.buffers()]:
            self._count(tensor)

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:  # a tensor without storage
                self._count(tensor)
        return out


def network(width: int = 32) -> tuple[nn.Module, list[Batch]]:
    """Return the dense VGG16 and the five batches."""
    torch.manual_seed(SEED)
    found = make_loaders(build("datasets", "FASHION_MINI"), batch_size=128, seed=SEED, image_size=width)
    return build("models", "VGG16", image_size=width), scoring_batches(found)


def scorer(name: str, model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    """Score once."""
    criterion = build("criterions", name)
    groups = channel_groups(model, batches[0][0])

    def run() -> None:
        criterion.score(model, batches, nn.functional.cross_entropy, groups)

    return run


def plain(model: nn.Module, batches: list[Batch]) -> Callable[[], float]:
    """Run forward and backward passes over the batches; return the seconds."""

    def run() -> float:
        model.train()
        start = time.perf_counter()
        for inputs, targets in batches:
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(inputs), targets).backward()
        seconds = time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return seconds

    return run


def peak(model: nn.Module, run: Callable[[], Any]) -> int:
    """Return the peak memory of tensors during `run`."""
    with Peak(model) as mode:
        run()
    return mode.most


def sgd_step(model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    """Run one training step with plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def run() -> None:
        plain(model, batches[:1])
        model.train()
        nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def measure(model: nn.Module, batches: list[Batch], repeats: int) -> tuple[list[Row], list[Row], int]:
    """Return rows of seconds and of memory, and the number of disturbed measurements."""
    scorers = {name: scorer(name, model, batches) for name in ("SNIP", "SNAP")}
    turns = by_turns({"plain": plain(model, batches), **scorers}, repeats)
    times = [turns.ratio(name, "plain", label=f"{name}, 5 batches", target=TIME_TARGET) for name in scorers]
    step = peak(model, sgd_step(model, batches))
    memory = []
    for name, run in scorers.items():
        most = peak(model, run)
        note = f"{most / 2**20:.0f} MiB, a training step {step / 2**20:.0f} MiB"
        memory.append(Row(name, most / step, target=MEMORY_TARGET, note=note))
    return times, memory, turns.disturbed


@click.command()
@click.option("--quick", is_flag=True, help="Few turns.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
def main(quick: bool, file: Path | None) -> None:
    """Print the cost of scoring relative to plain passes."""
    torch.set_flush_denormal(True)
    head()
    times, memory, disturbed = measure(*network(), repeats=2 if quick else 7)
    show("Scoring, relative to five forward and backward passes", times)
    show("Peak memory of scoring, relative to a training step with SGD", memory)
    head(disturbed)
    record(file, {"seconds": times, "memory": memory})


if __name__ == "__main__":
    main()
