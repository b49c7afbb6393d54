"""Flags of run folders, checkpoints, the machine and plug-ins."""

from dataclasses import dataclass
from typing import Any

from secateur.framework.settings.field import section

_folder = section("Run folder and checkpoints", dense=False, study=True)
_machine = section("Machine", study=True)
_extend = section("Plug-ins and configuration", study=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of files and of the machine, and further options of plug-ins."""

    results_dir: str = _folder("results", "folder for run folders", metavar="DIR", path="write")
    run_name: str | None = _folder(None, "suffix of the run folder; default: MODEL_CRITERION", metavar="NAME")
    note: str | None = _folder(None, "remark to keep in the report", metavar="TEXT")
    checkpoint_name: str | None = _folder(
        None,
        "run folder to start from, by name or path; default with --eval: the newest",
        metavar="FOLDER",
        path="read",
        dense=True,
    )
    checkpoint_model: str | None = _folder(None, "file in its models/; default: MODEL_finished", metavar="STEM")
    pretrained: str | None = _folder(
        None,
        "initial weights: a safetensors file, a state dict of torch or a run folder",
        metavar="PATH",
        path="read",
        dense=True,
        study=False,
    )
    new_head: bool = _folder(False, "with --pretrained: re-initialise the last layer", dense=True, study=False)
    device: str = _machine("auto", "auto, cpu, cuda, cuda:N or mps", metavar="DEVICE", to="loaders")
    threads: int | None = _machine(None, "CPU threads; default: chosen by torch", low=1, most=1024, dense=False)
    deterministic: bool = _machine(True, "bitwise reproducible results for equal seeds")
    cudnn_benchmark: bool = _machine(False, "let cuDNN measure and choose the fastest algorithms", study=False)
    memory_format: str = _machine(
        "auto", "memory format; auto: measure", choices=("auto", "contiguous", "channels_last"), dense=False
    )
    train_memory_format: str = _machine(
        "auto",
        "memory format after pruning before training; auto: measure",
        choices=("auto", "contiguous", "channels_last"),
        dense=False,
        study=False,
    )
    fused: str = _machine("auto", "fused optimizer step", choices=("auto", "on", "off"), dense=False, study=False)
    latency: bool = _machine(True, "measure the latency of the dense and the pruned network", study=False)
    progress: str = _machine(
        "auto", "progress bars; auto: only on a terminal", choices=("auto", "on", "off"), dense=False
    )
    autoconfig: bool = _extend(True, "derive settings from other settings", dense=False, study=False)
    plugins: tuple[str, ...] = _extend(
        (), "folder of plug-ins; repeatable", metavar="DIR", path="read", dense=False
    )
    hidden_dim: int | None = _extend(None, "short for --set model.hidden_dim=N", low=1, most=10**6, to="model")
    set: dict[str, dict[str, Any]] = _extend(
        {},
        "option of a plug-in; repeatable; groups: model, loss, optimizer, criterion, trainer, tester, dataset",
        metavar="GROUP.KEY=VALUE",
    )
