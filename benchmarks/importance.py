"""Measure the cost of the Taylor and gradient-flow criterions: `python -m benchmarks.importance`.

On a VGG16 and a ResNet20 (1 x 32 x 32), with channel groups given and batches of FASHION_MINI:

- first-order criterions relative to the plain forward and backward passes over the same batches, in training mode;
- OBD and TaylorGateSO relative to C + 1 plain backward passes for each batch, C the number of classes. The joint
  gates of ResNet20's stages need a pass each through their own stage;
- Oracle relative to one forward pass in inference mode for each channel, timed once and multiplied.

A target is met if the ratio is below it; those of Oracle are inverse.
"""

import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.overhead import SEED
from benchmarks.score import plain, scorer
from benchmarks.timing import Row, by_turns, head, record, show
from secateur import build, channel_groups
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.gates.curvature import Curvature
from secateur.utils.loading.batches import Batch
from secateur.utils.loading.loaders import make_loaders

FIRST_ORDER = (
    "TaylorWeight", "TaylorGate", "TaylorOutput", "BNTaylor", "LossBased", "TFO", "BiasedLoss",
    "BiasedLossTracked",
)  # fmt: skip
SQUARED = ("Fisher", "NvidiaFisher", "TaylorGateFG")
SECOND_ORDER = ("OBD", "TaylorGateSO")
TARGETS = {"first": 1.1, "squared": 1.5, "second": 1.5}
#: targets of Oracle's time relative to one forward pass for each channel
ORACLE = {"VGG16": 1 / 5, "ResNet20": 1 / 2.5}
CLASSES = 10
TITLES = {
    "first": "First order, in forward and backward passes",
    "second": "Second order, in C + 1 backward passes",
    "oracle": "Oracle, in one forward pass for each channel",
}
PARTS = tuple(TITLES)


class Block(nn.Module):
    """Two convolutions with a skip connection, an identity or a 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.a, self.na = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.b, self.nb = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride == 2:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.nb(self.b(F.relu(self.na(self.a(x))))) + self.skip(x))


def resnet20(width: int = 16) -> nn.Module:
    """Build three stages of three blocks."""
    widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    blocks = [Block(one, two) for one, two in zip(widths, widths[1:], strict=False)]
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, CLASSES))


def networks() -> dict[str, nn.Module]:
    """Build the initialised networks."""
    torch.manual_seed(SEED)
    return {"VGG16": build("models", "VGG16", image_size=32), "ResNet20": resnet20()}


def batches_of(count: int, size: int) -> list[Batch]:
    """Return batches of FASHION_MINI at 32 x 32 pixels."""
    found = make_loaders(build("datasets", "FASHION_MINI"), batch_size=size, seed=SEED, image_size=32)
    return found.scoring_batches("random", batches=count, samples=None, batch_size=size, seed=SEED, step=0)


def backwards(model: nn.Module, batches: list[Batch], passes: int) -> Callable[[], float]:
    """Run plain backward passes for each batch; return their seconds, without the forward passes."""

    def run() -> float:
        model.train()
        seconds = 0.0
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs), targets)
            start = time.perf_counter()
            for _ in range(passes):
                model.zero_grad(set_to_none=True)
                loss.backward(retain_graph=True)
            seconds += time.perf_counter() - start
        model.zero_grad(set_to_none=True)
        return seconds

    return run


def first_order(name: str, model: nn.Module, batches: list[Batch], repeats: int) -> list[Row]:
    """Compare first-order criterions with plain passes."""
    scorers = {one: scorer(one, model, batches) for one in (*FIRST_ORDER, *SQUARED)}
    turns = by_turns({"plain": plain(model, batches), **scorers}, repeats)
    return [
        turns.ratio(one, "plain", label=f"{one}, {name}", target=TARGETS["squared" if one in SQUARED else "first"])
        for one in scorers
    ]


def second_order(name: str, model: nn.Module, batches: list[Batch], repeats: int) -> list[Row]:
    """Compare second-order criterions with C + 1 plain backward passes."""
    groups = free_groups(channel_groups(model, batches[0][0][:1]))
    with scoring(model):
        plan = Curvature.plan(model, groups, batches[0][0][:2])
    scorers = {one: scorer(one, model, batches) for one in SECOND_ORDER}
    turns = by_turns({"backwards": backwards(model, batches, CLASSES + 1), **scorers}, repeats)
    alone = sum(groups[one].channels for one in (*plan.rows.groups, *plan.serial))
    rows = [turns.ratio(one, "backwards", label=f"{one}, {name}", target=TARGETS["second"]) for one in scorers]
    for row in rows:
        row.note = f"{CLASSES} passes for all channels" + (f", one for each of {alone}" if alone else "")
    return rows


def oracle(name: str, model: nn.Module, batches: list[Batch], repeats: int) -> list[Row]:
    """Compare Oracle with one forward pass for each channel."""
    groups = free_groups(channel_groups(model, batches[0][0][:1]))
    channels = sum(group.channels for group in groups.values())

    def forward() -> float:
        model.eval()
        with torch.inference_mode():
            start = time.perf_counter()
            for inputs, _ in batches:
                model(inputs)
        return (time.perf_counter() - start) * channels

    turns = by_turns({"forwards": forward, "Oracle": scorer("Oracle", model, batches)}, repeats)
    row = turns.ratio("Oracle", "forwards", label=f"Oracle, {name}", target=ORACLE[name])
    row.note = f"{1 / row.value:.1f} times as fast, {channels} channels"
    return [row]


@click.command()
@click.option("--quick", is_flag=True, help="Few turns, small batches.")
@click.option("--model", "only", type=click.Choice(list(ORACLE)), help="One of the networks.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="One of the tables; repeatable.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
def main(quick: bool, only: str | None, parts: tuple[str, ...], file: Path | None) -> None:
    """Print the cost of the criterions relative to plain passes."""
    torch.set_flush_denormal(True)
    head()
    repeats, size = (1, 16) if quick else (5, 64)
    tables: dict[str, list[Row]] = {part: [] for part in parts or PARTS}
    for name, model in networks().items():
        if only in (None, name):
            batches = batches_of(2, size)
            if "first" in tables:
                tables["first"] += first_order(name, model, batches, repeats)
            if "second" in tables:
                tables["second"] += second_order(name, model, batches[:1], min(repeats, 3))
            if "oracle" in tables:
                tables["oracle"] += oracle(name, model, batches[:1], min(repeats, 2))
    for part, rows in tables.items():
        show(TITLES[part], rows)
    record(file, tables)


if __name__ == "__main__":
    main()
