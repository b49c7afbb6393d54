"""Per-sample gradients of channel gates, captured at the outputs that the gates would multiply."""

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
#: function of a producer's weight name and products `(units, samples, positions)`
Reduce = Callable[[str, Tensor], Tensor]


@contextmanager
def capturing(sites: GateSites, copied: frozenset[str], reduce: Reduce | None = None) -> Iterator[Products]:
    """Context manager in which backward passes collect a * dL/da of the gated outputs a.

    Yields a mapping from each producer's weight to one tensor per call of its module, after `reduce` if given:
    `(units, samples, positions)`. The outputs in `copied` are modified in place later, so the network gets a copy.
    """
    products: Products = {}
    handles = []
    try:
        for weight, name in sites.outputs().items():
            module = sites.model.get_submodule(name)
            layer: Any = sites.model.get_submodule(weight.rpartition(".")[0])
            spaces = 0 if weight in sites.norms else layer.weight.dim() - 2
            listener = _Listener(products, weight, spaces, weight in sites.norms, weight in copied, reduce)
            handles.append(module.register_forward_hook(listener))
        yield products
    finally:
        for handle in handles:
            handle.remove()


class _Listener:
    """Forward hook that registers a gradient hook on the output of one module."""

    def __init__(self, found: Products, weight: str, spaces: int, norm: bool, copied: bool, reduce: Any) -> None:
        self.found, self.weight, self.copied, self.reduce = found, weight, copied, reduce
        self.channel = 1 if norm else -1 - spaces

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return None
        kept = output.detach()
        if not output.requires_grad:  # no earlier tensor requires a gradient
            output = output.requires_grad_().clone()
        elif self.copied:
            output = output.clone()

        def record(grad: Tensor) -> None:
            products = (kept * grad).movedim((self.channel, 0), (0, 1)) if kept.dim() > 1 else kept * grad
            products = products.reshape(*products.shape[:2], -1)
            part = self.reduce(self.weight, products) if self.reduce else products
            self.found.setdefault(self.weight, []).append(part)

        output.register_hook(record)
        return output


def sum_positions(_weight: str, products: Tensor) -> Tensor:
    """Sum over positions, which gives the gradient of a gate for each sample: `(units, samples)`."""
    return products.sum(2)


def capturable(sites: GateSites, sample: Tensor) -> tuple[set[str], frozenset[str]]:
    """Return the producers' weights whose outputs give the gates' gradients per sample, and those to be copied.

    This is verified on one or two samples: the captured gradients must match those of the parameters, and a loss
    of the first sample must not depend on the second. It fails if a layer's weight is used without calling the
    layer, or if its output has no sample dimension. Call it inside `scoring`.
    """
    copied = _changed_in_place(sites, sample)
    freeze(sites.model, sites.parameters().values())
    with capturing(sites, copied, sum_positions) as products, torch.enable_grad():
        outputs = [output for output in output_tensors(sites.model(sample)) if output.requires_grad]
        if outputs:
            torch.stack([output[:1].float().square().mean() for output in outputs]).sum().backward()
    expected = sites.units({name: gradient(tensor) for name, tensor in sites.parameters().items()})
    for parameter in sites.model.parameters():
        parameter.grad = None
    captured = set()
    for weight in sites.outputs():
        sums = _expected(sites, expected, weight)
        unused = weight not in products and sums is not None and not sums.any()  # the loss does not depend on it
        if unused or (weight in products and _agree(products[weight], sums, sample)):
            captured.add(weight)
    return captured, copied


def _expected(sites: GateSites, units: Mapping[str, Tensor], weight: str) -> Tensor | None:
    bias = weight[: -len("weight")] + "bias"
    if weight in sites.bare and bias in units:
        return units[weight] + units[bias]
    return units.get(weight)


def _agree(parts: list[Tensor], expected: Tensor | None, sample: Tensor) -> bool:
    if any(part.dim() != 2 or part.shape[1] != len(sample) for part in parts):
        return False
    total = torch.stack(parts).sum(0)
    size = torch.linalg.vector_norm(total)
    if len(sample) > 1 and torch.linalg.vector_norm(total[:, 1:]) > SAME * size:
        return False
    if expected is None:  # a norm without scale and shift: there are no parameters to compare with
        return True
    if expected.shape != total[:, 0].shape:
        return False
    return bool(torch.linalg.vector_norm(total.sum(1) - expected) <= SAME * torch.linalg.vector_norm(expected))


def _changed_in_place(sites: GateSites, sample: Tensor) -> frozenset[str]:
    """Return the producers' weights whose gated outputs are modified in place after the module call."""
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
        weight for weight, parts in seen.items() if any(output._version != version for output, version in parts)
    )
