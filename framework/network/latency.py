"""Latency of a forward pass: the median over repeats, for several batch sizes."""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from secateur.framework.network.preserve import preserved_state

LATENCY_BATCHES = (1, 64)


def measure_latency(
    models: Sequence[nn.Module],
    example_input: Tensor,
    batches: Sequence[int] = LATENCY_BATCHES,
    repeats: int = 30,
    warmup: int = 3,
) -> list[dict[str, float]]:
    """Return, for each model, batch size -> median milliseconds of a forward pass.

    The models are timed alternately, in eval mode and `inference_mode`, with the current number of threads and
    each in its own memory format.
    """
    timed: list[dict[str, list[float]]] = [{str(size): [] for size in batches} for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved_state(model))
        for size in batches:
            inputs = example_input[:1].expand(size, *example_input.shape[1:]).contiguous()
            for repeat in range(-warmup, repeats):
                for model, times in zip(models, timed, strict=True):
                    with torch.inference_mode():
                        seconds = _time(model, inputs)
                    if repeat >= 0:
                        times[str(size)].append(1000 * seconds)
    return [{size: statistics.median(values) for size, values in times.items()} for times in timed]


def _time(model: nn.Module, inputs: Tensor) -> float:
    synchronize(inputs.device)
    start = time.perf_counter()
    model(inputs)
    synchronize(inputs.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for pending work of the device, so that it is included in a timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
