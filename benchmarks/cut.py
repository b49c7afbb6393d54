"""Compare tracing, selecting and cutting with torch-pruning, and measure the latency: `python -m benchmarks.cut`.

1. Seconds of `channel_groups` + `select` + `cut` (half of all channels, by the L1 norm of their filters, ranked
   together), relative to torch-pruning's `MagnitudePruner`; each on a new copy of the network.
2. Peak memory of tensors beyond the network, relative to the network's.
3. Latency of one image after pruning half of the multiply-adds, relative to the dense network: as ranked, and with
   numbers of channels rounded to the multiple that is fast on this machine.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from benchmarks.coverage import scramble
from benchmarks.score import Peak
from benchmarks.timing import Row, by_turns, head, record, show
from secateur import channel_groups, cut, prune, select
from secateur.framework.network.latency import measure_latency
from secateur.framework.network.memory_format import fast_multiple
from secateur.framework.network.size import count_macs
from secateur.framework.plugins.registry import build
from secateur.utils.errors import UsageError
from secateur.utils.vision import torchvision

#: name -> target of the ratio to torch-pruning
NETWORKS = {
    "resnet50": 1.0, "densenet121": 0.1, "densenet201": 0.1, "mobilenet_v2": 1.0, "efficientnet_b0": 1.0,
    "vit_b_16": 1.0, "convnext_tiny": 1.0,
}  # fmt: skip
MEMORY_TARGET, SECONDS_TARGET = 1.2, 5.0
HALF = 0.5


def network(name: str) -> nn.Module:
    """Return a network of torchvision in eval mode, with norms as after training."""
    torch.manual_seed(0)
    model: nn.Module = torchvision().models.get_model(name, weights=None).eval()
    scramble(model)
    return model


def ours(model: nn.Module, image: Tensor) -> None:
    """Prune half of the channels of all free groups, ranked together."""
    groups = channel_groups(model, image)
    free = {name: group for name, group in groups.items() if group.protected is None}
    scores = build("criterions", "ChannelNorm").score(model, [(image, image)], nn.functional.mse_loss, free)
    cut(model, select(scores, HALF), groups)


def peer(model: nn.Module, image: Tensor) -> None:
    """Prune half of the channels with torch-pruning."""
    import torch_pruning

    last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            image,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=HALF,
            global_pruning=True,
            ignored_layers=[last],
        )
        pruner.step()


def on_a_copy(model: nn.Module, image: Tensor, way: Callable[[nn.Module, Tensor], None]) -> Callable[[], float]:
    """Return the seconds of pruning a copy, without the copying."""

    def run() -> float:
        twin = copy.deepcopy(model)
        start = time.perf_counter()
        way(twin, image)
        return time.perf_counter() - start

    return run


def against_peer(names: Sequence[str], repeats: int) -> tuple[list[Row], list[Row], int]:
    """Return the ratio to torch-pruning, and the seconds of both."""
    ratios, seconds, disturbed = [], [], 0
    image = torch.randn(1, 3, 224, 224)
    for name in names:
        model = network(name)
        turns = by_turns({"ours": on_a_copy(model, image, ours), "peer": on_a_copy(model, image, peer)}, repeats)
        row = turns.ratio("ours", "peer", label=name, target=NETWORKS[name])
        row.note = f"{turns.median('ours'):.2f} s and {turns.median('peer'):.2f} s"
        ratios.append(row)
        seconds.append(Row(name, turns.median("ours"), target=SECONDS_TARGET))
        disturbed += turns.disturbed
    return ratios, seconds, disturbed


def memory(names: Sequence[str]) -> list[Row]:
    """Return the peak memory beyond the network, relative to the network's."""
    rows, image = [], torch.randn(1, 3, 224, 224)
    for name in names:
        model = network(name)
        own = sum(tensor.untyped_storage().nbytes() for tensor in [*model.parameters(), *model.buffers()])
        with Peak(model) as mode:
            ours(model, image)
        rows.append(Row(name, mode.most / own - 1, target=MEMORY_TARGET, note=f"{own / 2**20:.0f} MiB"))
    return rows


def latency(names: Sequence[str], repeats: int) -> list[Row]:
    """Return the latency at half of the multiply-adds, relative to the dense network."""
    rows, image = [], torch.randn(1, 3, 224, 224)
    multiple = fast_multiple(torch.device("cpu"))
    for name in names:
        dense = network(name)
        found: dict[str, Any] = {}
        for label, round_to in ((f"{name}, as ranked", 1), (f"{name}, multiples of {multiple}", multiple)):
            smaller = copy.deepcopy(dense)
            try:
                prune(smaller, "ChannelNorm", HALF, example_input=image, budget="macs", scope="isomorphic",
                      round_to=round_to)  # fmt: skip
            except UsageError as error:
                rows.append(Row(label, float("nan"), note=str(error)))
            else:
                found[label] = smaller
        whole, *times = measure_latency([dense, *found.values()], image, batches=(1,), repeats=repeats)
        for (label, smaller), each in zip(found.items(), times, strict=True):
            share = count_macs(smaller, image)[0] / count_macs(dense, image)[0]
            rows.append(Row(label, each["1"] / whole["1"], note=f"{share:.3f} of the multiply-adds"))
    return rows


@click.command()
@click.option("--quick", is_flag=True, help="Few turns.")
@click.option("--name", "names", multiple=True, help="Only this network; repeatable.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Also write the numbers to this file.")
def main(quick: bool, names: Sequence[str], file: Path | None) -> None:
    """Print the cost of cutting and the latency of the cut networks."""
    torch.set_flush_denormal(True)
    head()
    chosen = list(names) or list(NETWORKS)
    ratios, seconds, disturbed = against_peer(chosen, 1 if quick else 3)
    show("channel_groups + select + cut, relative to torch-pruning", ratios)
    show("Seconds of Secateur", seconds, ("seconds", ""))
    space = memory(chosen)
    show("Peak memory beyond the network, relative to its size", space)
    gain = latency(chosen, 10 if quick else 30)
    show("Latency of one image at half of the multiply-adds, relative to the dense network", gain)
    head(disturbed)
    record(file, {"peer": ratios, "seconds": seconds, "memory": space, "latency": gain})


if __name__ == "__main__":
    main()
