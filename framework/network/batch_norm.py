"""Batch norms: those after layers, found by recording a forward pass, and estimates of their statistics."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.framework.network.copies import twin_of
from secateur.framework.network.layers import output_dim
from secateur.framework.network.outputs import hooked, output_tensors
from secateur.framework.network.preserve import preserved_state
from secateur.utils.subsampled import SubsampledConv2d

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: layers whose outputs can be normalised by other values of their parameters
FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, SubsampledConv2d)
#: parts of names of channelwise operations that torch does not tag as pointwise
CHANNELWISE = ("pool", "prelu", "dropout", "hardtanh", "hardswish", "hardsigmoid")


def batch_norms_after(
    model: nn.Module, layers: Iterable[str], run: Callable[[], Any], directly: bool = False
) -> dict[str, str]:
    """Return layer name -> name of the batch norm after it; layers without one are omitted.

    The outputs of the layer are the only inputs of the norm, which is their only consumer. Channelwise operations
    (an activation, pooling) may be in between, but no sum and no concatenation. The model is not changed.

    Args:
        model: The network.
        layers: Names of its layers.
        run: Runs the model once and returns its outputs.
        directly: Only find norms with running statistics that read the outputs of the layer itself.
    """
    modules = {name: model.get_submodule(name) for name in layers}
    owners = _norms_by_tensor(model, directly)
    if not modules or not owners:
        return {}
    outputs: dict[str, list[tuple[int, Any]]] = {name: [] for name in modules}
    with preserved_state(model), torch.no_grad(), _Record(owners, directly) as record:

        def keep(name: str) -> Callable[..., None]:
            return lambda _module, _args, _kwargs, output: outputs[name].append((len(record.events), output))

        with hooked((module, keep(name)) for name, module in modules.items()):
            record.returned = {id(tensor) for tensor in output_tensors(run())}
    calls = [norm for event in record.events for norm in record.norms_of(event)]
    norms = {}
    for name, module in modules.items():
        ends = [record.follow(place, out, module) for place, out in outputs[name]]
        if ends and ends[0] is not None and set(ends) == {ends[0]} and calls.count(ends[0]) == len(ends):
            norms[name] = ends[0]
    return norms


def _norms_by_tensor(model: nn.Module, with_statistics: bool) -> dict[int, str]:
    return {
        id(tensor): name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        if module.running_mean is not None or not with_statistics
        for tensor in (module.weight, module.running_mean)
        if tensor is not None
    }


class _Event(NamedTuple):
    func: Any
    given: list[Tensor]
    out: list[Tensor]


class _Record(TorchDispatchMode):
    """Records every operation in order, with references to its tensors, so that their ids stay unique."""

    def __init__(self, owners: dict[int, str], directly: bool) -> None:
        super().__init__()
        self._owners, self._directly = owners, directly
        self.events: list[_Event] = []
        self.returned: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **(kwargs or {}))
        self.events.append(_Event(func, given, [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]))
        return out

    def norms_of(self, event: _Event) -> set[str]:
        """Return the names of the norms whose tensors an operation reads; none if it is not a batch norm."""
        if "batch_norm" not in event.func.overloadpacket.__name__:
            return set()
        return {self._owners[id(tensor)] for tensor in event.given if id(tensor) in self._owners}

    def follow(self, place: int, out: Any, layer: Any) -> str | None:
        """Return the norm that consumes an output of the layer, starting at operation number `place`, or None."""
        if not isinstance(out, Tensor) or out.dim() + 1 - layer.weight.dim() != 1:
            return None
        if out.shape[1] != layer.weight.shape[output_dim(layer)]:
            return None  # grouped and transposed: a unit is several channels
        while True:
            users = [at for at in range(place, len(self.events)) if id(out) in map(id, self.events[at].given)]
            if not users or id(out) in self.returned:
                return None
            event, place = self.events[users[0]], users[0] + 1
            in_place = id(out) in map(id, event.out)
            if len(users) > 1 and not in_place:
                return None
            norms = self.norms_of(event)
            if norms:
                return norms.pop() if len(norms) == 1 and event.given[0] is out else None
            if self._directly or not _channelwise(event):
                return None
            out = out if in_place else event.out[0]


def _channelwise(event: _Event) -> bool:
    name = event.func.overloadpacket.__name__
    if "prelu" in name:
        return True
    if len(event.given) != 1 or not event.out or event.out[0].dim() != event.given[0].dim():
        return False
    return torch.Tag.pointwise in event.func.tags or any(word in name for word in CHANNELWISE)


def folded(model: nn.Module, norms: Mapping[str, str]) -> nn.Module:
    """Return a copy in eval mode in which the outputs of layers are already normalised.

    Its other tensors are those of the model. Layers and norms that are not torch's own, are parametrized or have
    hooks are not folded.

    Args:
        model: The network.
        norms: Layer name -> name of the batch norm with running statistics that reads its outputs, and only those.
    """
    twin = twin_of(model).eval()
    for name, after in norms.items():
        layer: Any = twin.get_submodule(name)
        norm: Any = twin.get_submodule(after)
        hooks = [hooks for module in (layer, norm) for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        if type(layer) in FOLDABLE and type(norm) in BATCH_NORMS and not any(hooks):
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics)
            norm.forward = _unchanged
    return twin


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of all batch norms, the buffers themselves."""
    return [buffer for norm in _norms(model) for buffer in (norm.running_mean, norm.running_var)]


@torch.no_grad()
def measured_statistics(model: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """Return the running statistics estimated from the given batches only, with all other layers in eval mode.

    They are means over the batches of each batch's mean and variance, in the order of `running_statistics`. The
    model is not changed. Batches of a single sample are skipped.
    """
    twin = twin_of(model).eval()
    for norm in _norms(twin):
        norm._buffers = {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    for inputs in batches:
        if len(inputs) > 1:
            twin(inputs)
    return running_statistics(twin)


def _norms(model: nn.Module) -> list[Any]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [module for module in model.modules() if isinstance(module, kinds) and module.running_mean is not None]
