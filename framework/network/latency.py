"""Latency of a forward pass: the median over repeats, for several batch sizes."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

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
    latencies: list[dict[str, float]] = [{} for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(preserved_state(model))
        stack.enter_context(torch.inference_mode())
        for size in batches:
            inputs = example_input[:1].expand(size, *example_input.shape[1:]).contiguous()
            timings = [partial(seconds_of, inputs.device, model, inputs) for model in models]
            for latency, seconds in zip(latencies, medians(timings, repeats, warmup), strict=True):
                latency[str(size)] = 1000 * seconds
    return latencies


def medians(timings: Sequence[Callable[[], float]], repeats: int, warmup: int = 1) -> list[float]:
    """Return the median of the seconds that each function returns; they are called in turns, after a warm-up."""
    turns = [[timing() for timing in timings] for _ in range(warmup + repeats)]
    return [statistics.median(seconds) for seconds in zip(*turns[warmup:], strict=True)]


def seconds_of(device: torch.device, function: Callable[..., Any], *args: Any, **options: Any) -> float:
    """Call a function, and return its duration with all work of the device that it starts."""
    _synchronize(device)
    start = time.perf_counter()
    function(*args, **options)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
