"""Does a cut compute what a mask computes? Tried out, since a traced graph cannot know what an operation means.

An operation that mixes channels (softmax, matmul, a reshape, an added constant) looks like any other in the
graph. So before a group is called free, some of its channels are masked in a copy of the network with made-up
weights, then cut out of that copy, and the outputs are compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.framework.network.copies import twin_of
from secateur.framework.network.layers import named_tensors
from secateur.framework.network.lineage import Staying, lineage_of
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.outputs import output_tensors
from secateur.framework.network.preserve import preserved_state, random_numbers_as_before
from secateur.framework.pruning.adapters.torch_layers import follow_shapes
from secateur.framework.pruning.channels.groups import MODEL_OUTPUT, Groups
from secateur.framework.pruning.channels.made_up_values import SEED, _made_up_values
from secateur.framework.pruning.channels.slicing import Factor, rescaled, rescaling, shrink, what_stays

CHANGED = "a cut does not compute what a mask computes"
NO_EFFECT = "the output does not change with the mask, so that nothing tells whether a cut is right"
#: rows and columns taken of a large image, where that is as good, if so many are left
STEPS, SMALL = (4, 2), 56
Keep = dict[str, Tensor]
#: distances, see `_distance`: rounding stays below the first, a wrong meaning as a rule above the second (in half
#: precision rounding comes near it); in between it may be a part of the mask's own effect
FINE, COARSE, OF_EFFECT = 3e-5, 0.03, 1e-4
#: the same of networks in double precision
FINE_DOUBLE, OF_EFFECT_DOUBLE = 1e-9, 1e-8


def mismatches(
    model: nn.Module, example: Tensor, groups: Groups, doubtful: Collection[str] = (), path: Sequence[str] = ()
) -> dict[str, str]:
    """The free groups whose cut is wrong, with the reason; call it in eval mode.

    The model is not changed: its copies share its tensors until they get their own. A group marked inexact is
    only asked to keep the network running and the shapes of its outputs. Groups named in `doubtful`, of which the
    code takes a piece that is not one of equal ones, are tried by themselves too: a piece may be found again
    after one cut by chance, but not after all of these. `path` has the names of the operations of a pass over
    `example`, if their meaning does not hang on its height and width: then fewer rows and columns of an image tell
    the same, as long as the operations are these.
    """
    free = {name: group for name, group in groups.items() if group.protected is None and group.channels > 1}
    keeps, alike = _keeps(free)
    reasons = _mismatches(model, example, free, keeps, alike, path)
    for name in doubtful:
        if name in free and name not in reasons:
            tried = (
                _wrong(model, example, {name: free[name]}, {name: keep}) for keep in _few_and_many(keeps[name])
            )
            wrong = next((reason for reason in tried if reason is not None), None)
            if wrong is not None:
                reasons[name] = wrong
    left = {name: group for name, group in free.items() if name in doubtful and name not in reasons}
    others = {name: ~keeps[name] if (~keeps[name]).any() else keeps[name] for name in left}
    return reasons | _mismatches(model, example, left, others, alike)


def _few_and_many(keep: Tensor) -> Iterator[Tensor]:
    """Masks without the first channel, without the last, and with one or two alone."""
    for off in (slice(0, 1), slice(-1, None), slice(1, None), slice(0, -2)):
        mask = torch.ones_like(keep)
        mask[off] = False
        if mask.any() and not mask.all():
            yield mask


def _mismatches(
    model: nn.Module, example: Tensor, free: Groups, keeps: Keep, alike: bool, path: Sequence[str] = ()
) -> dict[str, str]:
    """Halve what is wrong until it is known."""
    reasons: dict[str, str] = {}
    exact = [name for name in free if free[name].exact]
    # what passes only when cut alike lies side by side: the parts of one layer's outputs
    parts = [exact[::2], exact[1::2]] if alike else [exact]
    parts.append([name for name in free if not free[name].exact])

    def tried(names: list[str], together: bool = False) -> tuple[list[str], str | None]:
        some = {name: free[name] for name in names}
        reason = _wrong(model, example, some, keeps, path, together) if names else None
        if reason == NO_EFFECT and example.is_floating_point():  # an example of zeros, maybe
            noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(SEED)).to(example)
            reason = _wrong(model, noise, some, keeps, path, together)
        return names, reason

    pending = [tried(names, together=True) for names in parts]
    while pending:
        names, wrong = pending.pop()
        if wrong is None:
            continue
        middle = len(names) // 2
        halves = [tried(names[:middle]), tried(names[middle:])] if middle else []
        if any(found is not None for _, found in halves):
            pending += halves
        else:  # alone, or wrong only together
            reasons |= dict.fromkeys(names, wrong)
    return reasons


def not_removable(model: nn.Module, example: Tensor, groups: Groups) -> dict[str, str]:
    """Groups marked removable without which the network does not run or is not the masked one, and why."""
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


def _keeps(groups: Groups) -> tuple[Keep, bool]:
    """For each group a mask without a third to two thirds of the channels, and whether groups of one layer lose
    equally many: the halves of a chunk may be cut, but only alike. The first loses the most, since a chunk of an
    odd number has its larger half first."""
    generator = torch.Generator().manual_seed(SEED)
    counts: dict[int, int] = {}
    seen: set[tuple[str, int, int]] = set()
    keeps, alike = {}, False
    for name, group in groups.items():
        earlier = counts.get(group.channels, 0)
        counts[group.channels] = earlier + 1
        removed = max(1, 2 * group.channels // 3) - earlier % max(1, group.channels // 3)
        marks = {(producer, group.channels, removed) for producer in group.producers}
        alike = alike or not seen.isdisjoint(marks)
        seen |= marks
        keep = torch.ones(group.channels, dtype=torch.bool)
        keep[torch.randperm(group.channels, generator=generator)[:removed]] = False
        keeps[name] = keep
    return keeps, alike


def _wrong(
    model: nn.Module, example: Tensor, groups: Groups, keeps: Keep, path: Sequence[str] = (),
    all_of_them: bool = False,
) -> str | None:  # fmt: skip
    """Why cutting channels of these groups differs from masking them, or None. With `all_of_them` the mask has to
    change something."""
    outputs = _outputs(model, example, groups, keeps, path)
    if isinstance(outputs, str):
        return outputs
    used, expected, found = outputs
    if [one.shape for one in expected] != [one.shape for one in found]:
        return MODEL_OUTPUT
    if not _tell(expected):
        return "the output has no number that would tell whether a cut is right"
    if not all(group.exact for group in groups.values()):
        return None
    fine, of_effect = (FINE, OF_EFFECT) if _eps(expected) > 1e-12 else (FINE_DOUBLE, OF_EFFECT_DOUBLE)
    far = _distance(expected, found)
    if far == 0 and all_of_them:  # networks are rarely as small as to show no rounding
        return None if _effect(model, used, groups, keeps, expected) else NO_EFFECT
    if far <= (COARSE if _is_coarse(expected) else fine):
        return None
    if far > COARSE:
        return CHANGED
    # more than rounding as a rule makes of it, less than a wrong meaning: beside what the mask changes
    return None if far <= of_effect * _effect(model, used, groups, keeps, expected) else CHANGED


def _effect(model: nn.Module, example: Tensor, groups: Groups, keeps: Keep, masked: Sequence[Tensor]) -> float:
    """How far the output of the whole network is from the masked one's."""
    staying = _what_stays(model, groups, keeps)
    with torch.no_grad():
        twin = _copy(model, _made_up_values(model, _tensors_of(groups), staying, whole=True))
        torch.manual_seed(SEED)
        return _distance(masked, output_tensors(twin(example.clone())))


def distance(model: nn.Module, example: Tensor, groups: Groups) -> float:
    """How far the output after a cut of channels of these groups is from the masked one's, relative to how much
    that varies; infinite where it does not run. It tells two ways apart that both come close."""
    outputs = _outputs(model, example, groups, _keeps(groups)[0])
    return float("inf") if isinstance(outputs, str) else _distance(*outputs[1:])


def _what_stays(model: nn.Module, groups: Groups, keeps: Keep) -> Staying:
    return what_stays(model, {name: ~keeps[name] for name in groups}, groups)[0]


def _tensors_of(groups: Groups) -> set[str]:
    return {part.tensor for group in groups.values() for part in group.slices}


def _outputs(
    model: nn.Module, example: Tensor, groups: Groups, keeps: Keep, path: Sequence[str] = ()
) -> tuple[Tensor, list[Tensor], list[Tensor]] | str:
    """The input taken, and what the masked network and the cut one give for it, with the same noise for both; or
    why the latter does not run.

    Values are made up for what stays alone: with zeros around them they are those of the masked network.
    """
    staying = _what_stays(model, groups, keeps)
    values = _made_up_values(model, _tensors_of(groups), staying)
    twin = _copy(model, values)
    values.clear()  # memory holds them once, and less and less while they are cut
    with torch.no_grad():
        example, expected = _run_small(twin, example, path)
        try:
            _cut_in_place(twin, staying, rescaling({name: keeps[name] for name in groups}, groups))
            torch.manual_seed(SEED)
            return example, expected, output_tensors(twin(example.clone()))
        except Exception as error:  # whatever a stranger's forward raises on sizes it does not expect
            return f"{CHANGED}: {type(error).__name__}"


class _Path(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _run_small(twin: nn.Module, example: Tensor, path: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """The input taken and the outputs: of some rows and columns of a large image, where the network goes by `path`
    with these too."""
    if path and example.dim() == 4 and example.is_floating_point():
        for step in STEPS:
            small = example[:, :, ::step, ::step].contiguous()
            if min(small.shape[2:]) < SMALL:
                continue
            torch.manual_seed(SEED)
            given = small.clone()  # a network may change its input
            with contextlib.suppress(Exception), _Path() as taken:  # sizes that the code fixes
                out = output_tensors(twin(given))
                if taken.names == list(path) and all(bool(one.isfinite().all()) for one in out):
                    return small, out
    torch.manual_seed(SEED)
    return example, output_tensors(twin(example.clone()))


def _cut_in_place(twin: nn.Module, staying: Staying, factors: Mapping[str, list[Factor]]) -> None:
    """Cut tensor by tensor: nothing needs to be kept in case of an error."""
    lineage = lineage_of(twin)
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}  # tied tensors have several
    for module in twin.modules():
        holders: tuple[Any, Any] = (module._parameters, module._buffers)
        for holder in holders:
            for name, value in holder.items():
                places.setdefault(id(value), []).append((holder, name))
    tensors = named_tensors(twin)
    for tensor, dims in staying.items():
        old = tensors.pop(tensor)
        for dim, index in dims.items():
            lineage.record_cut(tensor, dim, index)
        if id(old) not in places:
            continue  # tied to one that was cut before
        new = shrink(rescaled(old, factors[tensor]) if tensor in factors else old, dims)
        replacement = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
        for holder, name in places.pop(id(old)):
            holder[name] = replacement
    follow_shapes(twin)


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _tell(outputs: Sequence[Tensor]) -> bool:
    return any(_is_number(one) and bool(one.isfinite().any()) for one in outputs)


def _eps(outputs: Sequence[Tensor]) -> float:
    """Rounding of the least precise one."""
    return max(torch.finfo(one.dtype).eps for one in outputs if _is_number(one))


def _is_coarse(outputs: Sequence[Tensor]) -> bool:
    """TF32, half precision."""
    return _eps(outputs) > 1e-6 or any(_is_number(one) and one.is_cuda for one in outputs)


def _distance(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest distance of two outputs, in parts of how far the expected one lies from a constant; infinite
    where their shapes differ."""
    if [one.shape for one in expected] != [one.shape for one in found]:
        return float("inf")
    pairs = [(one, other) for one, other in zip(expected, found, strict=True) if _is_number(one)]
    return max((_off(one, other) for one, other in pairs), default=0.0)


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
    """The modules copied, the tensors shared, except for parameters and statistics with made-up values."""
    twin = twin_of(model)
    for module in twin.modules():
        for name in [name for name in module._buffers if name.startswith(PREFIX)]:
            del module._buffers[name]  # masks play no part, and cutting them costs time
        for holder in (module._parameters, module._buffers):
            for name, old in holder.items():
                if old is not None and id(old) in values:
                    holder[name] = values[id(old)]  # type: ignore[assignment]
    return twin
