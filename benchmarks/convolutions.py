"""Search for convolutions that write outside their memory or are wrong: `python -m benchmarks.convolutions`.

Every shape is computed in a separate process (forward, gradient of the input, gradient of the weight), in which
glibc checks each block of memory that is freed (`MALLOC_CHECK_=3`, since glibc 2.34 in libc_malloc_debug.so.0)
and fills new and freed blocks with a pattern (`MALLOC_PERTURB_`), so that a byte written past the end of a tensor
ends the process. Values are compared with float64. Results: docs/known_upstream_faults.md.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import torch
from torch import Tensor, nn

DEBUG_LIBRARY = "libc_malloc_debug.so.0"
PASSES = ("forward", "input", "weight")
#: largest error of a value, relative to the largest value of the tensor
WRONG = 1e-4
#: exit status of a process with a wrong value
WRONG_VALUES = 3
REPEATS = 6
CONVOLVE = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}
TRANSPOSED = {
    1: nn.functional.conv_transpose1d,
    2: nn.functional.conv_transpose2d,
    3: nn.functional.conv_transpose3d,
}
#: tests an allocation of a tensor, since ctypes would find the malloc of the unchecked library
BYTE_TOO_MANY = """
import ctypes, torch
tensor = torch.zeros(25, dtype=torch.uint8)
ctypes.memset(tensor.data_ptr() + 25, 0x77, 1)
del tensor
"""


@dataclass(frozen=True)
class Shape:
    """One convolution; `inputs` and `outputs` are channels, `side` is the height and width of the image."""

    inputs: int
    outputs: int
    kernel: int
    stride: int | tuple[int, ...]
    groups: int = 1
    channels_last: bool = True
    dims: int = 2
    transposed: bool = False
    dtype: str = "float32"
    batch: int = 3
    side: int = 12
    passes: tuple[str, ...] = PASSES

    @property
    def layout(self) -> torch.memory_format:
        last = {2: torch.channels_last, 3: torch.channels_last_3d}
        return last.get(self.dims, torch.contiguous_format) if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Fault:
    """A shape whose process was ended by a signal (`memory`), or whose values were wrong."""

    shape: Shape
    memory: bool


def shapes_2d(channels: Sequence[int], kernels: Sequence[int], dtype: str = "float32") -> Iterator[Shape]:
    """Return all shapes of these channels: strides 1 to 3, one group, two and depthwise, both memory formats."""
    for kernel, stride, last, inputs in itertools.product(kernels, (1, 2, 3), (True, False), channels):
        for outputs in sorted({3, 16, inputs}):
            yield Shape(inputs, outputs, kernel, stride, 1, last, dtype=dtype)
        if inputs % 2 == 0:
            for outputs in sorted({4, 32, inputs}):
                yield Shape(inputs, outputs, kernel, stride, 2, last, dtype=dtype)
        if inputs > 1:
            yield Shape(inputs, inputs, kernel, stride, inputs, last, dtype=dtype)


def other_shapes(channels: Sequence[int]) -> Iterator[Shape]:
    """Return shapes of other dimensions, transposed convolutions, strides and sizes, for kernels of 1 and 3."""
    for kernel, stride, inputs in itertools.product((1, 3), (1, 2, 3), channels):
        for dims in (1, 3):
            yield Shape(inputs, 16, kernel, stride, dims=dims)
            yield Shape(inputs, 16, kernel, stride, dims=dims, transposed=True, side=5)
        for last, outputs in itertools.product((True, False), (3, 16)):
            yield Shape(inputs, outputs, kernel, stride, 1, last, transposed=True)
        for batch, side in ((1, 16), (64, 4), (3, 9)):
            yield Shape(inputs, 16, kernel, stride, batch=batch, side=side)
        if stride > 1:
            yield from (Shape(inputs, 16, kernel, pair) for pair in ((1, stride), (stride, 1)))


def tensors(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return inputs and weight, with the same values in every type."""
    generator = torch.Generator().manual_seed(0)
    size = [shape.side] * shape.dims
    rows, columns = (shape.inputs, shape.outputs) if shape.transposed else (shape.outputs, shape.inputs)
    columns //= shape.groups
    images = torch.randn(shape.batch, shape.inputs, *size, generator=generator)
    weight = torch.randn(rows, columns, *[shape.kernel] * shape.dims, generator=generator)
    kept = getattr(torch, shape.dtype)
    return images.to(kept).to(dtype), weight.to(kept).to(dtype)


def compute(shape: Shape, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """Return the results of the passes of a shape, in order."""
    images, weight = (tensor.contiguous(memory_format=layout) for tensor in tensors(shape, dtype))
    images.requires_grad_("input" in shape.passes)
    weight.requires_grad_("weight" in shape.passes)
    convolve = (TRANSPOSED if shape.transposed else CONVOLVE)[shape.dims]
    result = convolve(images, weight, None, shape.stride, shape.kernel // 2, groups=shape.groups)
    wanted = [tensor for tensor in (images, weight) if tensor.requires_grad]
    if not wanted:
        return [result.detach()]
    factor = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    factor = factor.to(getattr(torch, shape.dtype)).to(dtype)
    return [result.detach(), *torch.autograd.grad(result, wanted, factor.contiguous(memory_format=layout))]


def wrong(shape: Shape) -> bool:
    """Return whether a value differs from float64; each result is freed, and thereby checked."""
    exact = compute(shape, torch.float64, torch.contiguous_format)
    limit = WRONG if shape.dtype == "float32" else 3e-2
    for repeat in range(REPEATS):
        neighbours = [torch.empty(size) for size in range(1 + repeat, 200, 7)]
        values = compute(shape, getattr(torch, shape.dtype), shape.layout)
        del neighbours
        for value, reference in zip(values, exact, strict=True):
            error = (value.double() - reference).abs().max() / reference.abs().max().clamp_min(1e-30)
            if not float(error) <= limit:
                return True
    return False


def work() -> None:
    """Read shapes from the standard input; print after each the status of the process that computed it."""
    torch.set_num_threads(1)  # threads do not survive a fork
    for layout in (True, False):  # initialises once what is otherwise initialised in every process
        wrong(Shape(16, 16, 3, 1, channels_last=layout))
    for given in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            os._exit(WRONG_VALUES if wrong(Shape(**given)) else 0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def environment(isa: str | None) -> dict[str, str]:
    """Return the environment of a process that checks its memory and uses the instructions of `isa`."""
    checks = {"LD_PRELOAD": DEBUG_LIBRARY, "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", "MALLOC_ARENA_MAX": "1"}
    return {**os.environ, **checks, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}


def check_the_check() -> None:
    """Raise ClickException unless one byte written past the end of a block ends a process."""
    command = [sys.executable, "-c", BYTE_TOO_MANY]
    if subprocess.run(command, env=environment(None), capture_output=True, check=False).returncode != -6:
        raise click.ClickException(f"glibc's checks of memory are not active: is {DEBUG_LIBRARY} installed?")


def faults(shapes: Sequence[Shape], isa: str | None) -> list[Fault]:
    """Return the faulty shapes."""
    command = [sys.executable, "-m", "benchmarks.convolutions", "--work"]
    given = json.dumps([asdict(shape) for shape in shapes])
    done = subprocess.run(command, input=given, env=environment(isa), capture_output=True, text=True, check=False)
    codes = [int(code) for code in done.stdout.split()]
    if done.returncode or any(code not in (0, WRONG_VALUES) and code > 0 for code in codes):
        raise click.ClickException(done.stderr[-2000:])
    return [Fault(one, code < 0) for one, code in zip(shapes, codes, strict=True) if code]


def faulty_passes(found: Sequence[Fault], isa: str | None) -> list[str]:
    """Return, for each fault, the passes that are faulty on their own."""
    names: dict[Shape, list[str]] = {fault.shape: [] for fault in found}
    for name in PASSES:
        for alone in faults([replace(shape, passes=(name,)) for shape in names], isa):
            names[replace(alone.shape, passes=PASSES)].append(name)
    return [", ".join(given) or "none" for given in names.values()]


def ranges(numbers: Sequence[int]) -> str:
    """Format numbers as "1-3, 5"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def table(shapes: Sequence[Shape], isa: str | None) -> list[str]:
    """Return rows of Markdown; shapes that differ only in channels and size share a row."""
    rows: dict[tuple[str, ...], list[Shape]] = {}
    found = faults(shapes, isa)
    for fault, passes in zip(found, faulty_passes(found, isa), strict=True):
        shape = fault.shape
        kind = ("transposed " if shape.transposed else "") + f"{shape.dims}-D, {shape.dtype}"
        depthwise = shape.groups > 1 and shape.groups == shape.inputs
        key = (
            isa or "default", kind, "channels_last" if shape.channels_last else "contiguous",
            str(shape.kernel), str(shape.stride), "depthwise" if depthwise else str(shape.groups),
            "memory" if fault.memory else "values", passes,
        )  # fmt: skip
        rows.setdefault(key, []).append(shape)
    return [
        f"| {' | '.join(key)} | {ranges([one.inputs for one in given])} | "
        f"{ranges([one.outputs for one in given])} |"
        for key, given in rows.items()
    ]


HEAD = ("instructions", "convolution", "format", "kernel", "stride", "groups", "fault", "faulty alone",
        "input channels", "output channels")  # fmt: skip


@click.command()
@click.option("--isa", multiple=True, help="ONEDNN_MAX_CPU_ISA, for example AVX2; may be given several times.")
@click.option("--quick", is_flag=True, help="Few channels.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Also write the table here.")
@click.option("--work", "working", is_flag=True, hidden=True)
def main(isa: tuple[str, ...], quick: bool, markdown: Path | None, working: bool) -> None:
    """Print a table of the faulty convolutions, by default with the instructions that oneDNN chooses itself."""
    if working:
        work()
        return
    check_the_check()
    channels = (3, 8) if quick else range(1, 41)
    kernels = (1, 3) if quick else (1, 3, 5, 7)
    shapes = [*shapes_2d(channels, kernels), *other_shapes(channels)]
    if not quick:
        shapes += [one for one in shapes_2d(channels, (1, 3), "bfloat16") if one.channels_last]
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for name in isa or (None,):
        lines += table(shapes, name)
    print(f"torch {torch.__version__}, {len(shapes)} shapes")
    print("\n".join(lines))
    if markdown is not None:
        markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
