"""Memory format in which a network trains fastest on this machine, measured and cached.

The results of the formats differ by rounding. The choice is stored in the run's config.yaml, so that a repetition
uses it, and in a small cache, so that the next run of the same network on this machine is bit-identical.
"""

import hashlib
import os
import platform
import statistics
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.convolution_faults import explained, faulty_layers
from secateur.framework.network.latency import medians, seconds_of
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


def memory_format(model: nn.Module, example_input: Tensor) -> tuple[str, str]:
    """Return the name of the memory format with the faster forward and backward pass. The model is unchanged.

    With it, the reason is returned why it is "contiguous" without a measurement; "" for a measured one. Small
    networks are not measured, and those with layers that must not be trained in channels_last.
    """
    if example_input.dim() != 4:
        return "contiguous", "the inputs are no images"
    if faulty_layers(model):
        return "contiguous", "the only safe format here"
    macs = count_macs(model, example_input)[0]
    if macs < WORTH_MEASURING:
        return "contiguous", f"fewer than {WORTH_MEASURING:,} multiply-adds, too few to measure"
    # more samples for small networks, or the overhead of Python would be measured
    samples = min(MOST_SAMPLES, max(SAMPLES, WORK // macs))
    shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    facts = [*_hardware(example_input.device), tuple(example_input.shape[1:]), shapes]
    return _cached(facts, MEMORY_FORMATS, lambda: _measure(model, example_input, samples)), ""


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
        timings = []
        for width in WIDTHS:
            given = torch.randn(8, width, 14, 14, device=device)
            weight = torch.randn(width, width, 3, 3, device=device)
            timings.append(partial(seconds_of, device, nn.functional.conv2d, given, weight, padding=1))
        with torch.inference_mode():
            times = medians(timings, repeats=7)
        costs = {width: seconds / width**2 for width, seconds in zip(WIDTHS, times, strict=True)}
        means = {n: statistics.mean(costs[width] for width in WIDTHS if width % n == 0) for n in MULTIPLES}
        return str(next(n for n in MULTIPLES if means[n] <= NEARLY * min(means.values())))

    facts = ("multiple", *_hardware(device), MULTIPLES, len(WIDTHS))
    return int(_cached(facts, [str(multiple) for multiple in MULTIPLES], measure))


def _cached(facts: Sequence[Any], allowed: Collection[str], measure: Callable[[], str]) -> str:
    """Return the cached result of a measurement that depends on `facts`; measure if it is unknown or invalid.

    An unreadable or unwritable cache only costs a measurement.
    """
    key = hashlib.sha256(repr(facts).encode()).hexdigest()
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur" / "memory_formats.json"
    known: Any = None
    with suppress(UsageError):
        known = read_json(file, RESULTS)
    entries = known.items() if isinstance(known, dict) else ()
    cache = {entry: name for entry, name in entries if isinstance(name, str)}
    if cache.get(key) not in allowed:
        cache[key] = measure()
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, cache)
    return cache[key]


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
    wide = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    before = torch.channels_last if wide else torch.contiguous_format
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # the weights of linear layers, most of those of VGG16, do not depend on the format
    trained = [parameter for parameter in trained if parameter.dim() > 3] or trained

    def timing(layout: torch.memory_format) -> float:
        lay_out(model, layout)
        laid_out = inputs.contiguous(memory_format=layout)
        with scoring(model):
            return seconds_of(
                inputs.device,
                lambda: torch.autograd.grad(model(laid_out).square().mean(), trained, allow_unused=True),
            )

    try:
        times = medians([partial(timing, layout) for layout in MEMORY_FORMATS.values()], REPEATS)
    finally:
        lay_out(model, before)
    seconds = dict(zip(MEMORY_FORMATS, times, strict=True))
    return "channels_last" if seconds["channels_last"] < MARGIN * seconds["contiguous"] else "contiguous"


def _hardware(device: torch.device) -> list[Any]:
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    return [torch.__version__, device.type, name, torch.get_num_threads()]
