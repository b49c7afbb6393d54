"""Setup of device, threads, determinism and seeds for a run."""

import os
import random

import numpy as np
import torch

from secateur.framework.settings.decisions import FOUND, Config, Decisions


def prepare_machine(config: Config, decisions: Decisions) -> Config:
    """Set up device, threads, determinism and seeds; return the settings with the device and the threads."""
    if config.device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        config = decisions.choose(config, FOUND, "available", device=device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    config = decisions.choose(config, FOUND, "threads of torch", threads=torch.get_num_threads())
    torch.set_flush_denormal(True)
    # torch warns for CUDA kernels without deterministic version, such as the backward pass of adaptive pooling
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    seed_everything(config.seed)
    return config


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
