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
4. Thresholds of d, the relative L2 distance. Rounding stays below FINE = 3e-5 (1e-9 in float64): accepted. A wrong
   cut, as a rule, exceeds COARSE = 0.03: refused. TF32 and half precision round to almost COARSE, so that it is
   their only threshold. In between, d is accepted up to OF_EFFECT = 1e-4 (1e-8) of the distance `_effect` between
   the unmasked and the masked output, since rounding is relative to this. If d is 0 in the first trial, the mask
   must have an effect at all (`NO_EFFECT`), on noise if it has none on the example, which may be all zeros.
5. If the trial fails, the groups are halved until those that fail are known (`_mismatches`). Groups of which the
   code slices an unequal piece ("doubtful") get more trials, each alone: first, last, all but one or two channels
   removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.framework.network.copies import replace_tensors, twin_of
from secateur.framework.network.layers import named_tensors
from secateur.framework.network.lineage import KeptIndices, lineage_of
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.outputs import output_tensors
from secateur.framework.network.preserve import preserved_state, random_numbers_as_before
from secateur.framework.pruning.adapters.torch_layers import follow_shapes
from secateur.framework.pruning.channels.groups import MODEL_OUTPUT, Groups
from secateur.framework.pruning.channels.made_up_values import VERIFICATION_SEED, made_up_values
from secateur.framework.pruning.channels.slicing import Factor, kept_positions, rescaled, rescaling, shrink

CHANGED = "a cut does not compute what a mask computes"
NO_EFFECT = "the output does not depend on the mask, so that a cut cannot be verified"
#: strides by which a large image is subsampled for a trial, and the least height and width after it
STRIDES, SMALL = (4, 2), 56
KeepMasks = dict[str, Tensor]
#: thresholds of `_distance`: below FINE it is rounding; a wrong cut, as a rule, is above COARSE, which rounding
#: in half precision almost reaches; in between, OF_EFFECT of the effect of the mask itself is accepted
FINE, COARSE, OF_EFFECT = 3e-5, 0.03, 1e-4
#: the thresholds in double precision
FINE_DOUBLE, OF_EFFECT_DOUBLE = 1e-9, 1e-8


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
    for name in doubtful:
        if name in free and name not in reasons:
            trials = (
                _wrong(model, example, {name: free[name]}, {name: keep}) for keep in _few_and_many(keeps[name])
            )
            wrong = next((reason for reason in trials if reason is not None), None)
            if wrong is not None:
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
    """Bisect: halve each failing set of groups until the failing groups are known, with their reasons.

    `repeated_counts` is whether some groups of one layer lose equally many channels, see `_keeps`.
    """
    reasons: dict[str, str] = {}
    exact = [name for name in free if free[name].exact]
    # groups that pass only if cut by the same number are neighbours, parts of one layer's outputs: separate them
    parts = [exact[::2], exact[1::2]] if repeated_counts else [exact]
    parts.append([name for name in free if not free[name].exact])

    def tried(names: list[str], together: bool = False) -> tuple[list[str], str | None]:
        some = {name: free[name] for name in names}
        reason = _wrong(model, example, some, keeps, path, together) if names else None
        if reason == NO_EFFECT and example.is_floating_point():  # the example may be all zeros
            noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(VERIFICATION_SEED)).to(
                example
            )
            reason = _wrong(model, noise, some, keeps, path, together)
        return names, reason

    pending = [tried(names, together=True) for names in parts]
    while pending:
        names, wrong = pending.pop()
        if wrong is None:
            continue
        middle = len(names) // 2
        halves = [tried(names[:middle]), tried(names[middle:])] if middle else []
        if any(reason is not None for _, reason in halves):
            pending += halves
        else:  # a single group, or groups that fail only together
            reasons |= dict.fromkeys(names, wrong)
    return reasons


def not_removable(model: nn.Module, example: Tensor, groups: Groups) -> dict[str, str]:
    """Return the removable groups without which the network fails or differs from the masked one, with why."""
    marked = {name: group for name, group in groups.items() if group.removable and group.channels}
    keeps = {name: torch.zeros(group.channels, dtype=torch.bool) for name, group in marked.items()}
    reasons: dict[str, str] = {}
    pending = [list(marked)]
    with preserved_state(model), random_numbers_as_before():
        while pending:
            names = pending.pop()
            wrong = _wrong(model, example, {name: marked[name] for name in names}, keeps) if names else None
            if wrong is not None and len(names) > 1:
                pending += [names[: len(names) // 2], names[len(names) // 2 :]]
            elif wrong is not None:
                reasons[names[0]] = wrong
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


def _wrong(
    model: nn.Module, example: Tensor, groups: Groups, keeps: KeepMasks, path: Sequence[str] = (),
    all_of_them: bool = False,
) -> str | None:  # fmt: skip
    """Return why cutting channels of these groups differs from masking them, or None if it does not.

    With `all_of_them` the mask must have an effect on the output.
    """
    outputs = _outputs(model, example, groups, keeps, path)
    if isinstance(outputs, str):
        return outputs
    used, expected, actual = outputs
    if [out.shape for out in expected] != [out.shape for out in actual]:
        return MODEL_OUTPUT
    if not _tell(expected):
        return "the output has no finite floating-point number, so that a cut cannot be verified"
    if not all(group.exact for group in groups.values()):
        return None
    fine, of_effect = (FINE, OF_EFFECT) if _eps(expected) > 1e-12 else (FINE_DOUBLE, OF_EFFECT_DOUBLE)
    far = _distance(expected, actual)
    if far == 0 and all_of_them:  # hardly any network is so small that it shows no rounding
        return None if _effect(model, used, groups, keeps, expected) else NO_EFFECT
    if far <= (COARSE if _is_coarse(expected) else fine):
        return None
    if far > COARSE:
        return CHANGED
    # more than the usual rounding, less than the usual error of a wrong cut: compare with the effect of the mask
    return None if far <= of_effect * _effect(model, used, groups, keeps, expected) else CHANGED


def _effect(
    model: nn.Module, example: Tensor, groups: Groups, keeps: KeepMasks, masked: Sequence[Tensor]
) -> float:
    """Return the distance between the outputs of the unmasked and the masked network."""
    kept_indices = _kept_positions(model, groups, keeps)
    with torch.no_grad():
        twin = _copy(model, made_up_values(model, _tensors_of(groups), kept_indices, whole=True))
        torch.manual_seed(VERIFICATION_SEED)
        return _distance(masked, output_tensors(twin(example.clone())))


def distance(model: nn.Module, example: Tensor, groups: Groups) -> float:
    """Return the relative distance between the outputs after cutting and after masking channels of these groups.

    Infinite if the cut network does not run. It compares two ways to cut that both pass verification.
    """
    outputs = _outputs(model, example, groups, _keeps(groups)[0])
    return float("inf") if isinstance(outputs, str) else _distance(*outputs[1:])


def _kept_positions(model: nn.Module, groups: Groups, keeps: KeepMasks) -> KeptIndices:
    return kept_positions(model, {name: ~keeps[name] for name in groups}, groups)[0]


def _tensors_of(groups: Groups) -> set[str]:
    return {part.tensor for group in groups.values() for part in group.slices}


def _outputs(
    model: nn.Module, example: Tensor, groups: Groups, keeps: KeepMasks, path: Sequence[str] = ()
) -> tuple[Tensor, list[Tensor], list[Tensor]] | str:
    """Return the input used and the outputs of the masked and the cut network for it, or why the latter fails.

    Both passes use the same random seed. Only kept positions have random values: with zeros elsewhere, the copy
    is the masked network.
    """
    kept_indices = _kept_positions(model, groups, keeps)
    values = made_up_values(model, _tensors_of(groups), kept_indices)
    twin = _copy(model, values)
    values.clear()  # one copy in memory, which becomes smaller while tensors are cut
    with torch.no_grad():
        example, expected = _run_small(twin, example, path)
        try:
            _cut_in_place(twin, kept_indices, rescaling({name: keeps[name] for name in groups}, groups))
            torch.manual_seed(VERIFICATION_SEED)
            return example, expected, output_tensors(twin(example.clone()))
        except Exception as error:  # a third-party forward may raise anything on unexpected sizes
            return f"{CHANGED}: {type(error).__name__}"


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
    """Cut tensor by tensor, without rollback: the twin is discarded after an error."""
    lineage = lineage_of(twin)
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}  # tied tensors have several
    for module in twin.modules():
        holders: tuple[Any, Any] = (module._parameters, module._buffers)
        for holder in holders:
            for name, value in holder.items():
                places.setdefault(id(value), []).append((holder, name))
    tensors = named_tensors(twin)
    for tensor, dims in kept_indices.items():
        old = tensors.pop(tensor)
        for dim, index in dims.items():
            lineage.record_cut(tensor, dim, index)
        if id(old) not in places:
            continue  # tied to a tensor that is cut already
        new = shrink(rescaled(old, factors[tensor]) if tensor in factors else old, dims)
        replacement = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
        for holder, name in places.pop(id(old)):
            holder[name] = replacement
    follow_shapes(twin)


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tell(outputs: Sequence[Tensor]) -> bool:
    """Whether the outputs contain a finite number, so that they can be compared."""
    return any(_is_number(out) and bool(out.isfinite().any()) for out in outputs)


def _eps(outputs: Sequence[Tensor]) -> float:
    """Return the machine epsilon of the least precise output."""
    return max(torch.finfo(out.dtype).eps for out in outputs if _is_number(out))


def _is_coarse(outputs: Sequence[Tensor]) -> bool:
    """Whether the outputs may be computed in TF32 or half precision."""
    return _eps(outputs) > 1e-6 or any(_is_number(out) and out.is_cuda for out in outputs)


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


def _copy(model: nn.Module, values: Mapping[int, Tensor]) -> nn.Module:
    """Copy the modules and share the tensors, except for parameters and statistics with random values."""
    twin = twin_of(model)
    for module in twin.modules():
        for name in [name for name in module._buffers if name.startswith(PREFIX)]:
            del module._buffers[name]  # masks have no effect here, and cutting them takes time
    replace_tensors(twin, values)
    return twin
