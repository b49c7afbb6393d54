"""Measure how far torchvision's classification networks can be pruned, and whether the cut is exact.

    python -m benchmarks.coverage [--names NAME ...] [--timm] [--json FILE] [--go_on] [--markdown FILE]

A random half of the channels of every free group is pruned. Columns: free and protected groups (with the reasons),
free groups with `inexact=True`, parameters and multiply-adds before and after, the largest difference between the
outputs of the cut and the masked network relative to the largest output, with random norms and biases, the seconds
of tracing, selecting and cutting, and the latency of one image before and after, measured in turns.
"""

import argparse
import copy
import gc
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.timing import machine
from secateur.framework.network.latency import measure_latency
from secateur.framework.network.masks import Masks
from secateur.framework.network.size import count_macs
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import ChannelGroup
from secateur.framework.pruning.surgery.cutting import cut
from secateur.utils.vision import torchvision

SIZES = {"inception_v3": 299}
#: the smallest network of each family
FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
    "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16",
    "wide_resnet50_2",
]  # fmt: skip


#: a sample of timm, one or two small networks of each family; requires `pip install timm`
TIMM = [
    "beit_base_patch16_224", "cait_xxs24_224", "coat_lite_tiny", "convmixer_768_32", "convnextv2_atto",
    "crossvit_9_240", "cspresnet50", "darknet53", "deit_tiny_patch16_224", "dla34", "dpn68", "edgenext_xx_small",
    "efficientformer_l1", "eva02_tiny_patch14_224", "fastvit_t8", "focalnet_tiny_srf", "ghostnet_100",
    "hardcorenas_a", "hrnet_w18_small", "inception_v4", "levit_128s", "maxvit_rmlp_pico_rw_256",
    "mixer_s32_224", "mobilevit_xxs", "mobilevitv2_050", "nfnet_l0", "poolformer_s12", "repvgg_a2",
    "res2net50_14w_8s", "skresnet18",
]  # fmt: skip


def make(name: str) -> nn.Module:
    """Build a network with random weights; those of timm are named timm/NAME."""
    if name.startswith("timm/"):
        torchvision()
        import timm

        network: nn.Module = timm.create_model(name.removeprefix("timm/"), pretrained=False)
        return network
    model: nn.Module = torchvision().models.get_model(name, weights=None)
    return model


def image_size(name: str, model: nn.Module) -> int:
    """Return the side in pixels of the network's images."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return SIZES.get(name, int(config.get("input_size", (3, 224, 224))[-1]))


def networks() -> list[str]:
    """Return the names of all classification networks of torchvision."""
    models = torchvision().models
    return sorted(models.list_models(module=models))


@torch.no_grad()
def scramble(model: nn.Module) -> None:
    """Randomise norms, biases, scales and tokens, so that the initial values cannot hide a wrong cut."""
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_floating_point():
                continue
            if isinstance(module, norms) and name in ("weight", "running_var"):
                tensor.uniform_(0.5, 1.5)
            elif isinstance(module, norms) or name.endswith("bias"):
                tensor.normal_(0, 0.1)
            elif float(tensor.min()) == float(tensor.max()):  # a zero head, a layer scale of 1e-6, a token
                tensor.uniform_(0.5, 1.5) if "scale" in name else tensor.normal_(0, 0.05)


def half(groups: dict[str, ChannelGroup]) -> dict[str, Tensor]:
    """Return a mask with a random half of the channels of every free group."""
    keep = {}
    for name, group in groups.items():
        if group.protected is None and group.channels > 1:
            keep[name] = torch.zeros(group.channels, dtype=torch.bool)
            keep[name][torch.randperm(group.channels)[: -(-group.channels // 2)]] = True
    return keep


def mask_channels(model: nn.Module, keep: Mapping[str, torch.Tensor], groups: Mapping[str, ChannelGroup]) -> None:
    """Mask instead of cut: every parameter entry of a removed channel's slices is held at zero."""
    parameters = dict(model.named_parameters())
    masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in parameters.items()}
    for name, mask in keep.items():
        for tensor, dim, index in groups[name].slices:
            if tensor in masks:
                masks[tensor].index_fill_(dim, index[~mask].flatten(), False)
    Masks(model).hold(masks)


def check(name: str, latency_repeats: int = 10) -> dict[str, Any]:
    """Measure one network; return its row of the table."""
    torch.manual_seed(0)
    model = make(name).eval()
    scramble(model)
    size = image_size(name, model)
    images = torch.randn(2, 3, size, size)
    start = time.perf_counter()
    groups = channel_groups(model, images)
    keep = half(groups)
    masked = copy.deepcopy(model)  # not part of the measured time
    copied = time.perf_counter()
    mask_channels(masked, keep, groups)
    with torch.no_grad():
        expected = masked(images)
    macs, params = count_macs(model, images)[0], _count(model)
    dense = copy.deepcopy(model)
    begin = time.perf_counter()
    cut(model, keep, groups)
    seconds = copied - start + time.perf_counter() - begin
    with torch.no_grad():
        error = float((model(images) - expected).abs().max() / expected.abs().max())
    before, after = measure_latency([dense, model], images, batches=(1,), repeats=latency_repeats, warmup=1)
    reasons = Counter(group.protected for group in groups.values() if group.protected)
    return {
        "name": name,
        "free": len(keep),
        "protected": dict(reasons),
        "params": params,
        "params_after": _count(model),
        "macs": macs,
        "macs_after": count_macs(model, images)[0],
        "error": error,
        "seconds": seconds,
        "latency_ms": before["1"],
        "latency_ms_after": after["1"],
        "free_inexact": _free_inexact(name, images),
    }


def _free_inexact(name: str, images: Tensor) -> int:
    groups = channel_groups(make(name).eval(), images, inexact=True)
    return sum(group.protected is None and group.channels > 1 for group in groups.values())


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def summary(reasons: dict[str, int]) -> str:
    """Count the reasons by kind, and format them."""
    kinds = Counter[str]()
    for reason, count in reasons.items():
        if reason != "model output":
            kinds[reason.split(" at ")[0]] += count
    return ", ".join(f"{kind} ({count})" for kind, count in kinds.items())


#: target of the seconds for a network
SECONDS = 5
COLUMNS = ["network", "free", "protected", "free inexact", "params", "MACs", "error", "seconds", "latency"]


def cells(row: dict[str, Any]) -> list[str]:
    """Format the cells of one row."""
    if "left_out" in row:
        return [row["name"], "left out", f"{row['left_out']:.0f} M parameters", "", "", "", "", "", ""]
    if "failed" in row:
        return [row["name"], "failed", row["failed"], "", "", "", "", "", ""]
    return [
        row["name"],
        str(row["free"]),
        summary(row["protected"]),
        str(row["free_inexact"]),
        f"{row['params'] / 1e6:.1f} → {row['params_after'] / 1e6:.1f} M",
        f"{row['macs'] / 1e9:.2f} → {row['macs_after'] / 1e9:.2f} G",
        f"{row['error']:.0e}",
        f"{row['seconds']:.1f}",
        f"{row['latency_ms']:.0f} → {row['latency_ms_after']:.0f} ms",
    ]


def main() -> None:
    """Measure the networks one after the other; each row is printed and written immediately."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--names", nargs="*", help="networks, timm/NAME for those of timm; default: all")
    parser.add_argument("--families", action="store_true", help="the smallest network of each family")
    parser.add_argument("--timm", action="store_true", help="also a sample of timm, which must be installed")
    parser.add_argument("--largest", type=float, default=1000, help="skip larger networks; million parameters")
    parser.add_argument("--json", type=Path, help="file of the rows, which is updated")
    parser.add_argument("--go_on", action="store_true", help="skip the networks in the JSON file")
    parser.add_argument("--markdown", type=Path, help="write the page with all rows")
    given = parser.parse_args()
    rows = {row["name"]: row for row in json.loads(given.json.read_text())} if _is_file(given.json) else {}
    chosen = FAMILIES if given.families else networks() if given.names is None else given.names
    for name in [*chosen, *(f"timm/{name}" for name in TIMM if given.timm)]:
        if given.go_on and name in rows:
            continue
        rows[name] = _row(name, given.largest)
        print("  ".join(cells(rows[name])), flush=True)
        gc.collect()
        if given.json:
            given.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(markdown(list(rows.values())), encoding="utf-8")
    table = Table(*COLUMNS)
    for row in rows.values():
        table.add_row(*cells(row))
    Console(width=200).print(table)


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _row(name: str, largest: float) -> dict[str, Any]:
    size = _millions(name)
    if size > largest:
        return {"name": name, "left_out": size}
    try:
        return check(name)
    except Exception as error:  # a failed network is a row of the table
        return {"name": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def _millions(name: str) -> float:
    try:
        with torch.device("meta"):
            return _count(make(name)) / 1e6
    except (NotImplementedError, RuntimeError):  # an initialisation that reads its random values
        return _count(make(name)) / 1e6


INTRODUCTION = """# Which networks can be pruned

Every classification network of torchvision, with a random half of the channels of every free group pruned. This
page is written by `make coverage`: {machine}.

- *free*: number of channel groups that can be cut. *protected*: those that cannot, with the reason (without the
  groups of the model's output).
- *free inexact*: number of free groups with `inexact=True`, which also cuts channels that a LayerNorm reduces
  over.
- *error*: largest difference between the outputs of the cut and the masked network, relative to the largest
  output, in float32, with random values in norms, biases, scales and tokens.
- *seconds*: tracing, verifying, selecting and cutting. *latency*: one image, dense and cut, measured in turns, one
  run each on a shared machine with one or two threads: the two numbers are comparable with each other, not with
  other rows.

"""


TIMM_PART = """## A sample of timm

`python -m benchmarks.coverage --timm`, with timm installed.
"""


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return docs/coverage.md: the rows sorted by name, those of timm in a separate table."""
    facts = machine()
    rows = sorted(rows, key=lambda row: row["name"])
    own, theirs = (
        [row for row in rows if row["name"].startswith("timm/") is of_timm] for of_timm in (False, True)
    )
    lines = [INTRODUCTION.format(machine=f"{facts['cpu']}, {facts['threads']} threads, torch {facts['torch']}")]
    lines += [*_table(own), "", *_in_all(own)]
    if theirs:
        lines += ["", TIMM_PART, *_table(theirs), "", *_in_all(theirs)]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    shown = ["| " + " | ".join(cells(row)) + " |" for row in rows if "left_out" not in row]
    return ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *shown]


def _in_all(rows: list[dict[str, Any]]) -> list[str]:
    """Return lines that summarise the table."""
    measured = [row for row in rows if "error" in row]
    failed = [row["name"] for row in rows if "failed" in row]
    slow = [f"{row['name']} {row['seconds']:.1f} s" for row in measured if row["seconds"] > SECONDS]
    large = [f"{row['name']} ({row['left_out']:.0f} M)" for row in rows if "left_out" in row]
    counts = f"{len(measured)} networks, {', '.join(failed) or 'none'} failed"
    if measured:
        counts += f"; the largest error is {max(row['error'] for row in measured):.0e}"
    return [
        f"{counts}. Above {SECONDS} s: {', '.join(slow) or 'none'}.",
        *([f"Left out for their size: {', '.join(large)}."] if large else []),
    ]


if __name__ == "__main__":
    main()
