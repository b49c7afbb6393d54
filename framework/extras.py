"""What --train_acc, --test_acc, --flops and --compression add to the test of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.preserve import untouched
from secateur.framework.network.size import count_macs
from secateur.framework.pruning.scoring.criterion import Batch
from secateur.framework.reporting.dense_twin import dense_twin
from secateur.framework.reporting.measure import measure
from secateur.framework.settings.run_config import EXTRAS, RunConfig
from secateur.framework.storage.checkpoint import file_size
from secateur.utils.classification import correct_samples
from secateur.utils.loading.loaders import Loaders


def extras(config: RunConfig, model: nn.Module, loaders: Loaders, results: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that the flags ask for, by the names of the flags; empty without any of them.

    `train_acc`, `test_acc`: correct / all samples of the split; training images are those without validation's,
    not augmented. `flops`: multiply-adds of one sample, of the `dense` network and `now`, and `effective` ones,
    those of masked layers scaled by their density. `compression`: `ratio`, bytes of the dense network's file /
    those of this one's. `results` are those of the tester, which has the test accuracy already if it is Accuracy.
    """
    if not any(getattr(config, name) for name in EXTRAS):
        return {}
    found: dict[str, Any] = {}
    if config.train_acc:
        found["train_acc"] = accuracy(model, plain_training(loaders))
    if config.test_acc:
        known = config.test_scheme == "Accuracy"
        found["test_acc"] = results["accuracy"] if known else accuracy(model, loaders.test)
    if config.flops or config.compression:
        example = next(loaders.train.plain([torch.zeros(1, dtype=torch.int64)]))[0]
        found |= _sizes(config, model, example)
    return found


def _sizes(config: RunConfig, model: nn.Module, example: Tensor) -> dict[str, Any]:
    twin = dense_twin(model, example)
    now = measure(model, example, latency=False)
    found: dict[str, Any] = {}
    if config.flops:
        dense = count_macs(twin, example)[0]
        found["flops"] = {"dense": dense, "now": now["macs"], "effective": now["effective_macs"]}
    if config.compression:
        dense = file_size(twin)
        sizes = {"dense_bytes": dense, "bytes": now["bytes"], "csr_bytes": now["csr_bytes"]}
        found["compression"] = {"ratio": dense / now["bytes"], **sizes}
    return found


def plain_training(loaders: Loaders) -> Iterator[Batch]:
    """The training images once, in their order, not augmented; as many batches as an epoch may have."""
    loader = loaders.train
    chunks = torch.arange(loader.num_samples).split(loader.batch_size)
    return loader.plain(chunks[: loader.limit])


def accuracy(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Correct / all samples, in eval mode."""
    hits, samples = None, 0
    with untouched(model), torch.inference_mode():
        for inputs, targets in batches:
            right = correct_samples(model(inputs), targets)
            hits = right if hits is None else hits + right
            samples += len(targets)
    return int(hits) / samples if hits is not None else 0.0


def shown_extras(found: Mapping[str, Any]) -> list[str]:
    """A line for each."""
    lines = []
    if "flops" in found:
        macs = found["flops"]
        lines.append(f"  MACs of one sample: {macs['now']:,} (dense {macs['dense']:,}{_masked(macs)})")
    if "compression" in found:
        sizes = found["compression"]
        rows = "" if sizes["csr_bytes"] is None else f", {sizes['csr_bytes']:,} as sparse rows"
        lines.append(f"  compression ratio: {sizes['ratio']:.2f} "
                     f"({sizes['dense_bytes']:,} bytes dense, {sizes['bytes']:,} now{rows})")  # fmt: skip
    for name, what in (("train_acc", "training"), ("test_acc", "test")):
        if name in found:
            lines.append(f"  accuracy on the {what} images: {found[name]:.4f}")
    return lines


def _masked(macs: Mapping[str, int]) -> str:
    return "" if macs["effective"] == macs["now"] else f", {macs['effective']:,} at the density of its weights"
