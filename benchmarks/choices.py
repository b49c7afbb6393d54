"""Repeat the measurements behind implementation choices: `python -m benchmarks.choices`.

Each choice is timed relative to its alternative, in turns, on batches of 128 images; a value below 1 confirms it:

- LeakyReLU in place (utils/layers.py), training steps of VGG16, dense and cut by SNAPit 0.93;
- channels-last instead of contiguous (framework/network/memory_format.py measures it for each network), the same;
- fused Adam instead of foreach (framework/commands/assemble.py), training steps;
- denormal numbers flushed to zero (framework/commands/machine.py), training of the cut network in a separate
  process, since running threads keep their setting; the final weights are compared.
"""

import copy
import hashlib
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from benchmarks.overhead import SEED, adam, loaders, scoring_batches
from benchmarks.timing import Row, Turns, by_turns, head, record, show
from secateur import build, prune
from secateur.utils.loading.loaders import Loaders

LAST = torch.channels_last


def network(name: str, size: int = 28, sparsity: float = 0.0) -> tuple[nn.Module, Loaders]:
    """Return a network, cut by SNAPit if a sparsity is given, and batches for it."""
    torch.manual_seed(SEED)
    model, found = build("models", name, image_size=size), loaders(image_size=size)
    if sparsity > 0:
        prune(model, "SNAPit", sparsity, batches=scoring_batches(found))
    return model, found


def steps(
    model: nn.Module,
    found: Loaders,
    count: int,
    *,
    in_place: bool = True,
    layout: torch.memory_format = torch.contiguous_format,
    **optimizer: Any,
) -> Callable[[], float]:
    """Run `count` training steps of a copy of the network after a warmup step; return the seconds."""
    model = copy.deepcopy(model)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, nn.LeakyReLU):
            module.inplace = in_place
    adam_of_model = adam(model, **optimizer)
    inputs, targets = next(iter(found.train))
    inputs = inputs.contiguous(memory_format=layout)

    def run() -> float:
        model.train()
        start = 0.0
        for step in range(count + 1):
            if step == 1:
                start = time.perf_counter()
            adam_of_model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            adam_of_model.step()
        return time.perf_counter() - start

    return run


def layers(label: str, model: nn.Module, found: Loaders, repeats: int, count: int) -> tuple[list[Row], Turns]:
    """Compare in-place with out-of-place activations, and channels-last with contiguous."""
    turns = by_turns(
        {
            "neither": steps(model, found, count, in_place=False),
            "in place": steps(model, found, count),
            "last": steps(model, found, count, in_place=False, layout=LAST),
            "both": steps(model, found, count, layout=LAST),
        },
        repeats,
    )
    rows = [
        turns.ratio("in place", "neither", label=f"{label}: LeakyReLU in place"),
        turns.ratio("both", "last", label=f"{label}: LeakyReLU in place, channels-last"),
        turns.ratio("last", "neither", label=f"{label}: channels-last"),
        turns.ratio("both", "in place", label=f"{label}: channels-last, LeakyReLU in place"),
    ]
    return rows, turns


def optimizers(label: str, model: nn.Module, found: Loaders, repeats: int, count: int) -> tuple[list[Row], Turns]:
    """Compare fused with foreach Adam."""
    turns = by_turns(
        {
            "foreach": steps(model, found, count, fused=False, foreach=True),
            "fused": steps(model, found, count, fused=True),
        },
        repeats,
    )
    return [turns.ratio("fused", "foreach", label=f"{label}: fused Adam")], turns


def train(flush: bool, name: str, count: int) -> tuple[float, str]:
    """Return the seconds of `count` training steps, and a digest of the final weights."""
    torch.set_flush_denormal(flush)
    model, found = network(name, 32 if name == "VGG16" else 28, 0.93)
    optimizer = adam(model)
    model.train()
    start, done = time.perf_counter(), 0
    while done < count:
        for inputs, targets in found.train:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            done += 1
            if done == count:
                break
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(b"".join(one.detach().numpy().tobytes() for one in model.parameters()))
    return seconds, digest.hexdigest()


def denormals(name: str, repeats: int, count: int) -> list[Row]:
    """Compare flushed with kept denormal numbers, each in a new process."""
    found: dict[bool, list[tuple[float, str]]] = {True: [], False: []}
    for _ in range(repeats):
        for flush, results in found.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                results.append(pool.submit(train, flush, name, count).result())
    digests = {digest for results in found.values() for _, digest in results}
    turns = Turns({str(flush): [seconds for seconds, _ in results] for flush, results in found.items()})
    row = turns.ratio("True", "False", label=f"{name}, cut, first {count} steps: denormals flushed")
    row.note = "same weights" if len(digests) == 1 else f"{len(digests)} different results"
    return [row]


@click.command()
@click.option("--quick", is_flag=True, help="Few turns.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
def main(quick: bool, file: Path | None) -> None:
    """Print the ratio of each choice to its alternative."""
    torch.set_flush_denormal(True)
    head()
    repeats = 3 if quick else 11
    dense, cut, disturbed = network("VGG16", 32), network("VGG16", 32, 0.93), 0
    rows: list[Row] = []
    for label, (model, found), count in (("VGG16", dense, 1), ("cut VGG16", cut, 5)):
        more, turns = layers(label, model, found, repeats, count)
        rows, disturbed = rows + more, disturbed + turns.disturbed
    small, middle = network("LeNet5"), network("Conv6")
    for label, (model, found), count in (
        ("LeNet5", small, 20), ("Conv6", middle, 2), ("VGG16", dense, 1), ("cut VGG16", cut, 5)
    ):  # fmt: skip
        more, turns = optimizers(label, model, found, repeats, count)
        rows, disturbed = rows + more, disturbed + turns.disturbed
    rows += denormals("VGG16", 1 if quick else 3, 10 if quick else 94)
    show("Each choice, relative to its alternative", rows)
    head(disturbed)
    record(file, {"choices": rows})


if __name__ == "__main__":
    main()
