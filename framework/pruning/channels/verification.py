"""Verification by trial: a group is free only if cutting its channels computes what masking them computes.

The traced graph cannot prove this: an operation that mixes channels (softmax, matmul, a reshape, an added
constant) looks like any other one. Map of the algorithm, for all free groups together:

    model --twin_of--> dense copy (shares the tensors) --made_up_values--> random weights, zero where masked
                                                                 |
                                     +---------------------------+---------------------------+
                                     v                                                       v
                       masked: forward pass as it is               cut: `_cut_in_place`, then the same forward pass
                                     +------> d = |masked - cut| / |masked - its mean| <-----+

1. `_keeps` removes a third to two thirds of the channels of each group, with a fixed seed.
2. Random weights replace trained ones, since zero shifts, unit scales and closed branches of a new network, or the
   dead channels of a pruned one, would hide a wrong cut. Both passes use the same seed, hence the same dropout.
3. Different output shapes mean that the channels reach the output (`MODEL_OUTPUT`), an exception in the cut copy
   that its code depends on the width (`CHANGED`). For an inexact group nothing else is compared.
4. Thresholds of d, the relative L2 distance (`_Rounding`). Rounding stays below 3e-5 (1e-9 in float64): accepted.
   A wrong cut, as a rule, exceeds COARSE = 0.03: refused. In between, d is accepted up to 1e-4 (1e-8) of the
   distance `_effect` between the unmasked and the masked output, since rounding is relative to this. If d is 0 in
   the first trial, the mask must have an effect at all (`NO_EFFECT`), on noise if it has none on the example,
   which may be all zeros.
5. If the trial fails, the groups are halved until those that fail are known (`_bisected`). Groups of which the
   code slices an unequal piece ("doubtful") get more trials, each alone: first, last, all but one or two channels
   removed.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.framework.network.copies import twin_of
from secateur.framework.network.layers import named_tensors
from secateur.framework.network.lineage import KeptIndices, lineage_of
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.outputs import output_tensors
from secateur.framework.network.preserve import (
    places_of,
    preserved_state,
    random_numbers_as_before,
    replace_tensors,
)
from secateur.framework.pruning.adapters.torch_layers import follow_shapes
from secateur.framework.pruning.channels.groups import MODEL_OUTPUT, Groups
from secateur.framework.pruning.channels.made_up_values import VERIFICATION_SEED, made_up_values
from secateur.framework.pruning.channels.slicing import Factor, kept_positions, rescaled, rescaling, shrink

CHANGED = "a cut does not compute what a mask computes"
NO_EFFECT = "the output does not depend on the mask, so that a cut cannot be verified"
#: strides by which a large image is subsampled for a trial, and the least height and width after it
STRIDES, SMALL = (4, 2), 56
KeepMasks = dict[str, Tensor]
#: a wrong cut, as a rule, has a larger `_distance`
COARSE = 0.03


class _Rounding(NamedTuple):
    """Thresholds of `_distance`: up to `fine`, and up to that share of the effect of the mask, it is rounding."""

    fine: float
    of_effect: float


#: TF32 on a GPU rounds like half precision, almost up to COARSE, so that this is its only threshold
HALF, SINGLE, DOUBLE = _Rounding(COARSE, 0), _Rounding(3e-5, 1e-4), _Rounding(1e-9, 1e-8)


def mismatches(
    model: nn.Module, example: Tensor, groups: Groups, doubtful: Collection[str] = (), path: Sequence[str] = ()
) -> dict[str, str]:
    """Return the free groups whose cut does not compute what a mask computes, with the reason.

    The model must be in eval mode and is not changed: its copies share its tensors until they are replaced.

    Args:
        model: The network.
        example: One sample that it accepts.
        groups: The traced groups; protected ones and those of a single channel are not tried. For a group that is
            not `exact` only the output shapes are compared.
        doubtful: Names of groups of which the code uses a piece that is not one of equal pieces. These are also
            tried alone: one cut may match the piece by chance, several do not.
        path: Names of the operations of a pass over `example`, if none depends on its height and width. A large
            image is then subsampled, as long as the subsampled pass has the same operations.
    """
    free = {name: group for name, group in groups.items() if group.protected is None and group.channels > 1}
    keeps, equal = _keeps(free)
    reasons = _mismatches(model, example, free, keeps, equal, path)
    for name in [name for name in free if name in doubtful and name not in reasons]:
        trials = (_Trial(model, example, {name: free[name]}, {name: keep}) for keep in _few_and_many(keeps[name]))
        if wrong := next(filter(None, (trial.mismatch() for trial in trials)), None):
            reasons[name] = wrong
    unrefuted = {name: group for name, group in free.items() if name in doubtful and name not in reasons}
    others = {name: ~keeps[name] if (~keeps[name]).any() else keeps[name] for name in unrefuted}
    return reasons | _mismatches(model, example, unrefuted, others, equal)


def _few_and_many(keep: Tensor) -> Iterator[Tensor]:
    """Yield masks without the first channel, without the last, and with only the last or the last two."""
    for off in (slice(0, 1), slice(-1, None), slice(1, None), slice(0, -2)):
        mask = torch.ones_like(keep)
        mask[off] = False
        if mask.any() and not mask.all():
            yield mask


def _mismatches(
    model: nn.Module,
    example: Tensor,
    free: Groups,
    keeps: KeepMasks,
    repeated_counts: bool,
    path: Sequence[str] = (),
) -> dict[str, str]:
    """Return the groups that fail, with the reasons.

    `repeated_counts` is whether some groups of one layer lose equally many channels, see `_keeps`.
    """
    exact = [name for name in free if free[name].exact]
    # groups that pass only if cut by the same number are neighbours, parts of one layer's outputs: separate them
    parts = [exact[::2], exact[1::2]] if repeated_counts else [exact]
    parts.append([name for name in free if not free[name].exact])

    def tried(names: list[str], together: bool) -> str | None:
        some = {name: free[name] for name in names}
        reason = _Trial(model, example, some, keeps, path).mismatch(together)
        if reason == NO_EFFECT and example.is_floating_point():  # the example may be all zeros
            generator = torch.Generator().manual_seed(VERIFICATION_SEED)
            noise = torch.randn(example.shape, generator=generator).to(example)
            reason = _Trial(model, noise, some, keeps, path).mismatch(together)
        return reason

    return _bisected(parts, tried)


def not_removable(model: nn.Module, example: Tensor, groups: Groups) -> dict[str, str]:
    """Return the removable groups without which the network fails or differs from the masked one, with why."""
    marked = {name: group for name, group in groups.items() if group.removable and group.channels}
    keeps = {name: torch.zeros(group.channels, dtype=torch.bool) for name, group in marked.items()}

    def tried(names: list[str], together: bool) -> str | None:
        return _Trial(model, example, {name: marked[name] for name in names}, keeps).mismatch()

    with preserved_state(model), random_numbers_as_before():
        return _bisected([list(marked)], tried)


def _bisected(parts: list[list[str]], tried: Callable[[list[str], bool], str | None]) -> dict[str, str]:
    """Halve each failing set of groups until the failing groups are known, and return them with their reasons.

    `tried` returns why a trial of some groups fails, or None; it is also given whether these are a whole part.
    """
    reasons: dict[str, str] = {}
    pending = [(names, tried(names, True)) for names in parts if names]
    while pending:
        names, wrong = pending.pop()
        if wrong is None:
            continue
        middle = len(names) // 2
        halves = [(half, tried(half, False)) for half in (names[:middle], names[middle:]) if middle]
        if any(reason is not None for _, reason in halves):
            pending += halves
        else:  # a single group, or groups that fail only together
            reasons |= dict.fromkeys(names, wrong)
    return reasons


def _keeps(groups: Groups) -> tuple[KeepMasks, bool]:
    """Return a mask for each group, and whether any two groups of one layer lose equally many channels.

    Each mask removes a third to two thirds of the channels. The numbers differ between groups of one width, since
    the halves of a `chunk` can be cut only by the same number, which a trial with equal numbers would not show.
    The first group loses the most, since the first half is the larger one when `chunk` splits an odd number.
    """
    generator = torch.Generator().manual_seed(VERIFICATION_SEED)
    counts: dict[int, int] = {}
    seen: set[tuple[str, int, int]] = set()
    keeps, equal = {}, False
    for name, group in groups.items():
        earlier = counts.get(group.channels, 0)
        counts[group.channels] = earlier + 1
        removed = max(1, 2 * group.channels // 3) - earlier % max(1, group.channels // 3)
        marks = {(producer, group.channels, removed) for producer in group.producers}
        equal = equal or not seen.isdisjoint(marks)
        seen |= marks
        keep = torch.ones(group.channels, dtype=torch.bool)
        keep[torch.randperm(group.channels, generator=generator)[:removed]] = False
        keeps[name] = keep
    return keeps, equal


def distance(model: nn.Module, example: Tensor, groups: Groups) -> float:
    """Return the relative distance between the outputs after cutting and after masking channels of these groups.

    Infinite if the cut network does not run. It compares two ways to cut that both pass verification.
    """
    trial = _Trial(model, example, groups, _keeps(groups)[0])
    return float("inf") if trial.failure else _distance(trial.masked, trial.cut)


class _Trial:
    """The outputs of the masked and of the cut network for the same input and random seed."""

    def __init__(
        self, model: nn.Module, example: Tensor, groups: Groups, keeps: KeepMasks, path: Sequence[str] = ()
    ) -> None:
        self._model, self._groups = model, groups
        self._kept_indices = kept_positions(model, {name: ~keeps[name] for name in groups}, groups)[0]
        #: why the cut network fails, or None
        self.failure: str | None = None
        twin = self._copy()
        with torch.no_grad():
            self._example, self.masked = _run_small(twin, example, path)
            try:
                _cut_in_place(twin, self._kept_indices, rescaling({name: keeps[name] for name in groups}, groups))
                torch.manual_seed(VERIFICATION_SEED)
                self.cut = output_tensors(twin(self._example.clone()))
            except Exception as error:  # a third-party forward may raise anything on unexpected sizes
                self.failure = f"{CHANGED}: {type(error).__name__}"

    def mismatch(self, must_matter: bool = False) -> str | None:
        """Return why the outputs differ, or None if they are equal up to rounding.

        With `must_matter` the mask must have an effect on the output.
        """
        if self.failure is not None:
            return self.failure
        if [out.shape for out in self.masked] != [out.shape for out in self.cut]:
            return MODEL_OUTPUT
        if not any(_is_number(out) and bool(out.isfinite().any()) for out in self.masked):
            return "the output has no finite floating-point number, so that a cut cannot be verified"
        if not all(group.exact for group in self._groups.values()):
            return None
        far, rounding = _distance(self.masked, self.cut), _rounding(self.masked)
        if far == 0 and must_matter:  # hardly any network is so small that it shows no rounding
            return None if self._effect() else NO_EFFECT
        if far <= rounding.fine:
            return None
        # between the usual rounding and the usual error of a wrong cut: compare with the effect of the mask
        return None if far <= COARSE and far <= rounding.of_effect * self._effect() else CHANGED

    def _effect(self) -> float:
        """Return the distance between the outputs of the unmasked and the masked network."""
        with torch.no_grad():
            twin = self._copy(whole=True)
            torch.manual_seed(VERIFICATION_SEED)
            return _distance(self.masked, output_tensors(twin(self._example.clone())))

    def _copy(self, whole: bool = False) -> nn.Module:
        """Copy the modules and share the tensors, except for parameters and statistics with random values.

        The values of channels that are removed are zero, so that the copy is the masked network, unless `whole`.
        """
        masked = {part.tensor for group in self._groups.values() for part in group.slices}
        twin = twin_of(self._model)
        for module in twin.modules():
            for name in [name for name in module._buffers if name.startswith(PREFIX)]:
                del module._buffers[name]  # masks have no effect here, and cutting them takes time
        replace_tensors(twin, made_up_values(self._model, masked, self._kept_indices, whole))
        return twin


class _Path(TorchDispatchMode):
    """Records the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _run_small(twin: nn.Module, example: Tensor, path: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Return the input used and the outputs.

    The input is a subsampled image if the network runs the operations of `path` on it.
    """
    if path and example.dim() == 4 and example.is_floating_point():
        for step in STRIDES:
            small = example[:, :, ::step, ::step].contiguous()
            if min(small.shape[2:]) < SMALL:
                continue
            torch.manual_seed(VERIFICATION_SEED)
            given = small.clone()  # a network may change its input
            with contextlib.suppress(Exception), _Path() as record:  # the code may depend on a fixed size
                out = output_tensors(twin(given))
                if record.names == list(path) and all(bool(tensor.isfinite().all()) for tensor in out):
                    return small, out
    torch.manual_seed(VERIFICATION_SEED)
    return example, output_tensors(twin(example.clone()))


def _cut_in_place(twin: nn.Module, kept_indices: KeptIndices, factors: Mapping[str, list[Factor]]) -> None:
    """Cut tensor by tensor, which frees each at once, without rollback: the twin is discarded after an error."""
    places, tensors = places_of(twin), named_tensors(twin)
    lineage_of(twin).record_cut(kept_indices)
    for name, dims in kept_indices.items():
        old = tensors.pop(name)
        if id(old) in places:  # else tied to a tensor that is cut already
            value = shrink(rescaled(old, factors.get(name, ())), dims)
            new = nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value
            for holder, attribute in places.pop(id(old)):
                holder[attribute] = new
    follow_shapes(twin)


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _rounding(outputs: Sequence[Tensor]) -> _Rounding:
    """Return the thresholds for the least precise output."""
    eps = max(torch.finfo(out.dtype).eps for out in outputs if _is_number(out))
    if eps > 1e-6 or any(_is_number(out) and out.is_cuda for out in outputs):
        return HALF
    return SINGLE if eps > 1e-12 else DOUBLE


def _distance(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest L2 distance of two outputs, relative to the distance of the expected one from its mean.

    Infinite if the shapes differ.
    """
    if [out.shape for out in expected] != [out.shape for out in found]:
        return float("inf")
    pairs = [(out, other) for out, other in zip(expected, found, strict=True) if _is_number(out)]
    return max((_off(out, other) for out, other in pairs), default=0.0)


def _off(expected: Tensor, found: Tensor) -> float:
    if expected.is_complex():
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()):
        return float("inf")
    expected, found = expected[finite].double(), found[finite].double()
    if not expected.numel():
        return 0.0
    varies = torch.linalg.vector_norm(expected - expected.mean())
    rounding = torch.finfo(torch.float32).eps * torch.linalg.vector_norm(expected)
    return float(torch.linalg.vector_norm(expected - found) / (varies + rounding + torch.finfo(varies.dtype).tiny))
