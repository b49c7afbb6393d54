"""Memory format in which a network trains fastest on this machine, measured and cached.

The results of the formats differ by rounding. The choice is stored in the run's config.yaml, so that a repetition
uses it, and in a small cache, so that the next run of the same network on this machine is bit-identical.
"""

import hashlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.convolution_faults import explained, faulty_layers
from secateur.framework.network.latency import synchronize
from secateur.framework.network.preserve import scoring
from secateur.framework.network.size import count_macs
from secateur.utils.errors import UsageError
from secateur.utils.files.atomic import write_json
from secateur.utils.files.bounded_yaml import RESULTS, read_json

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
#: multiply-adds per sample below which the default is used without a measurement, since there is nothing to gain;
#: VGG16 without 93 % of its channels, 6 to 12 million, trains in three quarters of the time in channels-last
WORTH_MEASURING = 2_000_000
#: the time of channels-last must be below this share of the other, or noise would decide
MARGIN = 0.95
SAMPLES, REPEATS = 4, 3
#: the largest number of samples in a timed pass, and the multiply-adds for which as many samples are used
MOST_SAMPLES, WORK = 128, 2_000_000_000


def memory_format(model: nn.Module, example_input: Tensor) -> str:
    """Return the name of the memory format with the faster forward and backward pass. The model is unchanged.

    "contiguous", without a measurement, for small networks and for those with layers that must not be trained in
    channels_last.
    """
    if example_input.dim() != 4:
        return "contiguous"
    if faulty_layers(model):
        return "contiguous"
    macs = count_macs(model, example_input)[0]
    if macs < WORTH_MEASURING:
        return "contiguous"
    # more samples for small networks, or the overhead of Python would be measured
    samples = min(MOST_SAMPLES, max(SAMPLES, WORK // macs))
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    facts = [*_hardware(example_input.device), tuple(example_input.shape[1:]), shapes]
    return _cached(facts, MEMORY_FORMATS, lambda: _measure(model, example_input, samples))


#: candidate multiples of channels, and the widths at which they are timed
MULTIPLES, WIDTHS = (1, 2, 4, 8, 16, 32), range(65, 97)
#: a smaller multiple is used if its time is at most this factor of the fastest one's
NEARLY = 1.03


def fast_multiple(device: torch.device) -> int:
    """Return the number of which channels should be a multiple to be fast on this device, measured and cached.

    A 3 x 3 convolution of 14 x 14 positions is timed at every width of a range. The result is the smallest
    multiple whose widths have a mean time per multiply-add within NEARLY of the best.
    """

    def measure() -> str:
        costs = _costs(device)
        means = {n: statistics.mean(costs[width] for width in WIDTHS if width % n == 0) for n in MULTIPLES}
        return str(next(n for n in MULTIPLES if means[n] <= NEARLY * min(means.values())))

    facts = ("multiple", *_hardware(device), MULTIPLES, len(WIDTHS))
    return int(_cached(facts, [str(multiple) for multiple in MULTIPLES], measure))


def _cached(facts: Sequence[Any], allowed: Collection[str], measure: Callable[[], str]) -> str:
    """Return the cached result of a measurement that depends on `facts`; measure if it is unknown or invalid."""
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    cache = _read_cache()
    if cache.get(key) not in allowed:
        cache[key] = measure()
        _write_cache(cache)
    return cache[key]


def _costs(device: torch.device) -> dict[int, float]:
    """Return width -> median seconds of a convolution, divided by width^2."""
    times: dict[int, list[float]] = {width: [] for width in WIDTHS}
    with torch.inference_mode():
        given = {width: torch.randn(8, width, 14, 14, device=device) for width in WIDTHS}
        weights = {width: torch.randn(width, width, 3, 3, device=device) for width in WIDTHS}
        for repeat in range(-1, 7):
            for width in WIDTHS:
                start = time.perf_counter()
                nn.functional.conv2d(given[width], weights[width], padding=1)
                synchronize(device)
                if repeat >= 0:
                    times[width].append(time.perf_counter() - start)
    return {width: statistics.median(values) / width**2 for width, values in times.items()}


def lay_out(model: nn.Module, layout: torch.memory_format, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Convert all 4-D parameters and their optimizer state to a memory format, in place.

    Fused optimizer steps pair the entries of a parameter and of its state in memory order, so that both need the
    same format.
    """
    model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack this form
    for parameter, state in ({} if optimizer is None else optimizer.state).items():
        for key, value in state.items():
            if parameter.dim() == 4 and isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = value.contiguous(memory_format=layout)


def format_name(layout: torch.memory_format) -> str:
    """Return the name of a memory format in MEMORY_FORMATS."""
    return next(name for name, value in MEMORY_FORMATS.items() if value == layout)


def usable_format(name: str, *models: nn.Module) -> tuple[str, str]:
    """Return the requested format and "", or "contiguous" and the reason if a model must not be trained in it."""
    layers = [layer for model in models for layer in faulty_layers(model)]
    if name != "channels_last" or not layers:
        return name, ""
    return "contiguous", f"{explained(layers)}: memory_format is contiguous"


def _measure(model: nn.Module, example_input: Tensor, samples: int = SAMPLES) -> str:
    inputs = example_input[:1].expand(samples, *example_input.shape[1:])
    before = _layout(model)
    times: dict[str, list[float]] = {name: [] for name in MEMORY_FORMATS}
    try:
        for repeat in range(REPEATS + 1):  # the first repeat is a warm-up
            for name, layout in MEMORY_FORMATS.items():
                lay_out(model, layout)
                seconds = _pass(model, inputs.contiguous(memory_format=layout))
                if repeat:
                    times[name].append(seconds)
    finally:
        lay_out(model, before)
    medians = {name: statistics.median(values) for name, values in times.items()}
    faster = medians["channels_last"] < MARGIN * medians["contiguous"]
    return "channels_last" if faster else "contiguous"


def _layout(model: nn.Module) -> torch.memory_format:
    wide = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    return torch.channels_last if wide else torch.contiguous_format


def _pass(model: nn.Module, inputs: Tensor) -> float:
    # the weights of linear layers, most of those of VGG16, do not depend on the format
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.dim() > 3]
    parameters = parameters or [parameter for parameter in model.parameters() if parameter.requires_grad]
    with scoring(model):
        start = time.perf_counter()
        torch.autograd.grad(model(inputs).square().mean(), parameters, allow_unused=True)
        synchronize(inputs.device)
        return time.perf_counter() - start


def _hardware(device: torch.device) -> list[Any]:
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    return [torch.__version__, device.type, name, torch.get_num_threads()]


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "secateur" / "memory_formats.json"


def _read_cache() -> dict[str, str]:
    try:
        cache = read_json(_cache_file(), RESULTS)
    except UsageError:  # an unreadable cache only costs a measurement
        return {}
    return {key: name for key, name in cache.items() if isinstance(name, str)} if isinstance(cache, dict) else {}


def _write_cache(known: dict[str, str]) -> None:
    """Write the cache; an error is ignored, since it only costs a measurement next time."""
    try:
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_cache_file(), known)
    except OSError:
        return
