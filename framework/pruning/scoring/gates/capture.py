"""What a gate on each channel would tell about each sample, heard from the outputs it would multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.outputs import hooked, output_tensors
from secateur.framework.pruning.scoring.gates.output_gates import SAME
from secateur.framework.pruning.scoring.gates.sites import GateSites
from secateur.framework.pruning.scoring.gradients import freeze, gradient

Products = dict[str, list[Tensor]]
#: from a producer's weight and `(units, samples, positions)`
Reduce = Callable[[str, Tensor], Tensor]


@contextmanager
def capturing(sites: GateSites, copied: frozenset[str], reduce: Reduce | None = None) -> Iterator[Products]:
    """Inside, backward passes leave a * dL/da of the gated outputs a: `(units, samples, positions)` per call.

    By producer's weight; `reduce` is applied to each. The outputs in `copied` are changed in place later on: the
    network gets a copy of these.
    """
    found: Products = {}
    handles = []
    try:
        for weight, name in sites.outputs().items():
            module = sites.model.get_submodule(name)
            layer: Any = sites.model.get_submodule(weight.rpartition(".")[0])
            spaces = 0 if weight in sites.norms else layer.weight.dim() - 2
            listener = _Listener(found, weight, spaces, weight in sites.norms, weight in copied, reduce)
            handles.append(module.register_forward_hook(listener))
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _Listener:
    """Forward hook of one module."""

    def __init__(self, found: Products, weight: str, spaces: int, norm: bool, copied: bool, reduce: Any) -> None:
        self.found, self.weight, self.copied, self.reduce = found, weight, copied, reduce
        self.channel = 1 if norm else -1 - spaces

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return None
        kept = output.detach()
        if not output.requires_grad:  # nothing before it has a gradient
            output = output.requires_grad_().clone()
        elif self.copied:
            output = output.clone()

        def capturable(grad: Tensor) -> None:
            products = (kept * grad).movedim((self.channel, 0), (0, 1)) if kept.dim() > 1 else kept * grad
            products = products.reshape(*products.shape[:2], -1)
            part = self.reduce(self.weight, products) if self.reduce else products
            self.found.setdefault(self.weight, []).append(part)

        output.register_hook(capturable)
        return output


def sum_positions(_weight: str, products: Tensor) -> Tensor:
    """`(units, samples)`: what a gate on each sample's output has as its gradient."""
    return products.sum(2)


def capturable(sites: GateSites, sample: Tensor) -> tuple[set[str], frozenset[str]]:
    """The producers' weights whose outputs tell the gates' gradients sample by sample, and those to be copied.

    Tried on one or two samples: what is heard must agree with the gradients of the parameters, and a loss of the
    first sample must not reach the second. Where a layer's weight is used without calling the layer, or its output
    has no dimension of samples, nothing can be heard. Call it inside `scoring`.
    """
    copied = _changed_in_place(sites, sample)
    freeze(sites.model, sites.parameters().values())
    with capturing(sites, copied, sum_positions) as found, torch.enable_grad():
        outputs = [one for one in output_tensors(sites.model(sample)) if one.requires_grad]
        if outputs:
            torch.stack([one[:1].float().square().mean() for one in outputs]).sum().backward()
    expected = sites.units({name: gradient(one) for name, one in sites.parameters().items()})
    for parameter in sites.model.parameters():
        parameter.grad = None
    heard = set()
    for weight in sites.outputs():
        sums = _expected(sites, expected, weight)
        silent = weight not in found and sums is not None and not sums.any()  # nothing depends on it
        if silent or (weight in found and _agree(found[weight], sums, sample)):
            heard.add(weight)
    return heard, copied


def _expected(sites: GateSites, units: Mapping[str, Tensor], weight: str) -> Tensor | None:
    bias = weight[: -len("weight")] + "bias"
    if weight in sites.bare and bias in units:
        return units[weight] + units[bias]
    return units.get(weight)


def _agree(parts: list[Tensor], expected: Tensor | None, sample: Tensor) -> bool:
    if any(part.dim() != 2 or part.shape[1] != len(sample) for part in parts):
        return False
    each = torch.stack(parts).sum(0)
    size = torch.linalg.vector_norm(each)
    if len(sample) > 1 and torch.linalg.vector_norm(each[:, 1:]) > SAME * size:
        return False
    if expected is None:  # a norm without scale and shift: only its output tells
        return True
    if expected.shape != each[:, 0].shape:
        return False
    return bool(torch.linalg.vector_norm(each.sum(1) - expected) <= SAME * torch.linalg.vector_norm(expected))


def _changed_in_place(sites: GateSites, sample: Tensor) -> frozenset[str]:
    """The weights whose gated outputs something changes after the module has returned them."""
    seen: dict[str, list[tuple[Tensor, int]]] = {}

    def keep(weight: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.setdefault(weight, []).append((output, output._version))

        return hook

    modules = [(sites.model.get_submodule(name), keep(weight)) for weight, name in sites.outputs().items()]
    with torch.no_grad(), hooked(modules):
        sites.model(sample)
    return frozenset(
        weight for weight, parts in seen.items() if any(one._version != version for one, version in parts)
    )
