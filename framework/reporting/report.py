"""Collect the results of a run for report.json, and show them as a table."""

from pathlib import Path
from typing import Any

import torch
from rich.table import Column, Table

from secateur.framework.network.latency import measure_latency
from secateur.framework.network.memory_format import lay_out
from secateur.framework.network.size import count_macs
from secateur.framework.plugins.registry import registry
from secateur.framework.reporting.measure import dense_twin, measure
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.storage.checkpoint import file_size
from secateur.framework.training.events import PruneEvent
from secateur.framework.training.trainer import Trainer


def report_head(config: RunConfig) -> dict[str, Any]:
    """Return the facts that the reports of all commands begin with; those of an evaluation name the checkpoint."""
    facts = {"model": config.model, "data_set": config.data_set, "seed": config.seed, "note": config.note}
    checkpoint = f"{Path(str(config.checkpoint_name)).name}/{config.checkpoint_model}"
    return facts | ({"checkpoint": checkpoint} if config.eval else {})


def make_report(
    trainer: Trainer,
    config: RunConfig,
    accuracy: float,
    dense_accuracy: float | None,
    seconds: float,
    event: PruneEvent | None = None,
    counted: bool = False,
) -> dict[str, Any]:
    """Return all numbers of a finished run.

    The latency of both networks is measured in turns, in the memory format of training; with `--no_latency` it is
    None.

    Args:
        trainer: The trainer after the test.
        config: The settings of the run.
        accuracy: Test accuracy of the pruned network.
        dense_accuracy: Test accuracy of the dense network; None if it was not trained.
        seconds: Training time.
        event: The last pruning step. A step with a fixed threshold has no requested sparsity; a step that ranked
            the inputs of the first layer adds the number of inputs and of kept inputs.
        counted: Whether the number of pruned units ends pruning, so that no sparsity is requested.
    """
    model, example, progress = trainer.model, trainer.example_input, trainer.progress
    twin = dense_twin(model, example)
    lay_out(twin, trainer.memory_format)
    latency = measure_latency([twin, model], example) if config.latency else [None, None]
    dense_macs = count_macs(twin, example)[0]
    pruned = measure(model, example, latency=False)
    reached = {key: pruned[key] for key in ("weight_sparsity", "node_sparsity")}
    if event is not None and event.inputs is not None:
        reached |= {"inputs": len(event.inputs), "inputs_left": int(event.inputs.sum())}
    return {
        **report_head(config),
        "criterion": config.prune_criterion,
        "budget": config.budget,
        "asked_sparsity": _asked(config, event, counted),
        "reached": reached,
        "dense": {
            "accuracy": dense_accuracy,
            "params": sum(parameter.numel() for parameter in twin.parameters()),
            "macs": dense_macs,
            "bytes": file_size(twin),
            "latency_ms": latency[0],
        },
        "pruned": {
            "accuracy": accuracy,
            **{key: pruned[key] for key in ("params", "macs", "effective_macs", "bytes", "csr_bytes")},
            "latency_ms": latency[1],
        },
        "trainer": {"name": config.train_scheme, **trainer.report()},
        "train": {
            "epochs": progress.epoch + 1 if progress.step else 0,
            "seconds": round(seconds, 3),
            "cumulative_macs": progress.cumulative_macs,
            "dense_cumulative_macs": 3 * dense_macs * progress.samples,
            "stopped": progress.stopped,
            "rewinds": progress.rewinds,
            "memory_formats": progress.memory_formats,
        },
        "threads": torch.get_num_threads(),
        "warnings": progress.warnings,
    }


def _asked(config: RunConfig, event: PruneEvent | None, counted: bool) -> float | None:
    if not registry.describe("criterions", config.prune_criterion).prunes:
        return 0.0
    if event is None:  # no step ran: the request is the limit, unless it was a number of channels
        return None if counted else config.pruning_limit
    return config.pruning_limit if event.asked is not None else None


def report_table(report: dict[str, Any]) -> Table:
    """Return a table that compares the dense and the pruned network."""
    dense, pruned, reached, train = report["dense"], report["pruned"], report["reached"], report["train"]
    title = f"{report['model']} on {report['data_set']}, {report['criterion']}"
    if report["trainer"]["name"] != RunConfig.train_scheme:  # the default
        title += f", {report['trainer']['name']}"
    columns = [Column(name, justify="right") for name in ("dense", "pruned", "ratio")]
    table = Table("", *columns, title=title, title_justify="left")

    def compare(label: str, before: float, after: float, form: str = ",", unit: str = "") -> None:
        ratio = f"{before / after:.2f}x" if after else ""
        table.add_row(label, f"{before:{form}}{unit}", f"{after:{form}}{unit}", ratio)

    shown = "not trained" if dense["accuracy"] is None else f"{dense['accuracy']:.4f}"
    table.add_row("test accuracy", shown, f"{pruned['accuracy']:.4f}")
    for kind in ("node", "weight"):
        known = report["asked_sparsity"] is not None and report["budget"] == f"{kind}s"
        asked = f" (asked {report['asked_sparsity']:.4f})" if known else ""
        table.add_row(f"{kind} sparsity{asked}", "0", f"{reached[f'{kind}_sparsity']:.4f}")
    if "inputs" in reached:
        table.add_row("inputs of the first layer", str(reached["inputs"]), str(reached["inputs_left"]))
    for key, label in (("params", "parameters"), ("macs", "MACs a sample"), ("bytes", "bytes on disk")):
        if report["budget"] == key and report["asked_sparsity"] is not None:
            label += f" (asked {1 - report['asked_sparsity']:.4f} of them)"
        compare(label, dense[key], pruned[key])
    if pruned["csr_bytes"] is not None:
        compare("MACs at density", dense["macs"], pruned["effective_macs"])
        compare("bytes as sparse rows", dense["bytes"], pruned["csr_bytes"])
    for size, slow in (dense["latency_ms"] or {}).items():
        compare(f"latency, batch {size}", slow, pruned["latency_ms"][size], ".2f", " ms")
    compare("training MACs", train["dense_cumulative_macs"], train["cumulative_macs"], ".3e")
    table.add_row("training time", "", f"{train['seconds']:.1f} s")
    return table
