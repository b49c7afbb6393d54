"""Record a run: metrics.jsonl, TensorBoard, and a line per epoch on the console."""

from __future__ import annotations

import contextlib
import json
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from secateur.framework.network.masks import Masks
from secateur.framework.network.size import csr_bytes, layer_sizes, weight_sparsity
from secateur.framework.pruning.channels.discovery import node_sparsity
from secateur.framework.pruning.steps.rewinding import rewind_point
from secateur.framework.reporting.console import Console
from secateur.framework.storage.checkpoint import file_size
from secateur.framework.storage.run_folder import RunFolder
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.hooks import hookimpl
from secateur.utils.files.atomic import finite

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


class Recorder:
    """One row per evaluation; TensorBoard's x-axis is the number of training samples seen.

    Keys: acc/, loss/ and penalty/ for train, val and test; sparse/weight, sparse/node, sparse/hm (harmonic mean
    of weight sparsity and the latest accuracy), sparse/log_disk_size (ln of the bytes; CSR if masked);
    time/gpu_time (ms per batch) and time/batch_time (s per batch, with evaluation) if there were training batches
    since the last row, time/flops_per_sample (multiply-adds), time/flops_log_cum (log10, training and scoring);
    cuda/ram_footprint (bytes); layer/sparsity/LAYER (pruned share of the dense layer's weights).
    `phase`: warmup, pruning or final; `rewinds`: number of rewinds so far.
    Sparsities and size are those of `trainer.network()`; norm/l0 is added by L0Trainer.
    """

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self._folder, self._console = folder, console
        #: the TensorBoard writer, also for the figures of other listeners
        self.writer = SummaryWriter(str(folder.tensorboard))
        self.rows: list[dict[str, Any]] = []
        #: the rows at the ends of epochs
        self.epochs: list[dict[str, Any]] = []
        self._started = self._epoch_started = time.monotonic()
        #: since the last row: start of the batches, end of the last batch, and their number
        self._since = self._until = self._started
        self._batches = 0

    @hookimpl
    def run_started(self, trainer: Trainer) -> None:
        """Start the clock; pruning before training is part of the measured time."""
        self._started = time.monotonic()

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """Start the clock of the batches."""
        self._epoch_started = self._since = time.monotonic()

    @hookimpl
    def batch_ended(self, trainer: Trainer, loss: Tensor) -> None:
        """Count the batch; no host synchronisation."""
        self._batches += 1
        self._until = time.monotonic()

    @hookimpl
    def pruned(self, trainer: Trainer, event: PruneEvent) -> None:
        """Print the reached sparsity."""
        asked = "by a fixed threshold" if event.asked is None else f"asked {event.asked:.4f}"
        if event.number is not None:
            of_channels = all(mask.dim() == 1 for mask in event.keep.values())
            asked = f"{event.removed} {'channels' if of_channels else 'weights'}, asked {event.number}"
        inputs = "" if event.inputs is None else f", {int(event.inputs.sum())} of {len(event.inputs)} inputs kept"
        self._console.say(
            f"pruned {event.budget} to {event.reached:.4f} ({asked}){inputs}, {trainer.macs:,} MACs a sample"
        )

    @hookimpl
    def rewound(self, trainer: Trainer, to_epoch: int) -> None:
        """Print the epoch from which training continues."""
        self._console.say(f"rewound to {rewind_point(to_epoch)}")

    @hookimpl
    def warned(self, trainer: Trainer, message: str) -> None:
        """Print the warning and log it."""
        self._console.say(f"warning: {message}")

    @hookimpl
    def evaluated(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Write a row within an epoch, or after the test."""
        self.write(trainer, metrics)

    @hookimpl(tryfirst=True)
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Write the row of the epoch, for the network as trained and evaluated, before any pruning step."""
        row = self.write(trainer, metrics)
        self.epochs.append(row)
        shown = {"loss": "loss/train", "acc": "acc/train", "val loss": "loss/val", "val acc": "acc/val"}
        parts = [f"{label} {row[key]:.4f}" for label, key in shown.items() if key in row]
        seconds = time.monotonic() - self._epoch_started
        self._console.say(
            f"epoch {trainer.epoch + 1}/{trainer.settings.epochs}  {'  '.join(parts)}  "
            f"node sparsity {row['sparse/node']:.4f}  weight sparsity {row['sparse/weight']:.4f}  {seconds:.1f} s"
        )

    def write(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
        """Append and return a row with these metrics and the state of the network."""
        row: dict[str, Any] = {
            "epoch": trainer.epoch,
            "phase": trainer.progress.phase,
            "step": trainer.progress.step,
            "samples": trainer.progress.samples,
            "seconds": round(time.monotonic() - self._started, 3),
            **metrics,
            **self._state(trainer, metrics),
        }
        if trainer.progress.rewinds:
            row["rewinds"] = len(trainer.progress.rewinds)
        self.rows.append(row)
        with self._folder.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")
        for key, value in row.items():
            if "/" in key:
                self.writer.add_scalar(key, value, trainer.progress.samples)
        self.writer.flush()
        return row

    def close(self) -> None:
        """Close the TensorBoard file; an error here must not hide an error of the run."""
        with contextlib.suppress(OSError):
            self.writer.close()

    def _state(self, trainer: Trainer, metrics: dict[str, float]) -> dict[str, float]:
        network = trainer.network()
        weight = weight_sparsity(network)
        accuracy = next(
            (metrics[f"acc/{part}"] for part in ("test", "val", "train") if f"acc/{part}" in metrics), 0.0
        )
        size = csr_bytes(network) if len(Masks(network)) else file_size(network)
        state = {
            "sparse/weight": weight,
            "sparse/node": node_sparsity(network, trainer.example_input),
            "sparse/hm": 2 * weight * accuracy / (weight + accuracy) if weight + accuracy > 0 else 0.0,
            "sparse/log_disk_size": math.log(size),
            **{f"layer/sparsity/{layer.name}": 1 - layer.kept for layer in layer_sizes(network).values()},
            "time/flops_per_sample": float(trainer.macs),
            "time/flops_log_cum": math.log10(max(1, trainer.progress.cumulative_macs)),
            **trainer.state(),
        }
        if self._batches:
            now = time.monotonic()
            state["time/gpu_time"] = 1000 * (self._until - self._since) / self._batches
            state["time/batch_time"] = (now - self._since) / self._batches
            self._since, self._batches = now, 0
        if trainer.example_input.device.type == "cuda":
            state["cuda/ram_footprint"] = float(torch.cuda.memory_allocated(trainer.example_input.device))
        return state
