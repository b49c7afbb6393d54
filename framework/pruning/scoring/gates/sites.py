"""Places of the channel gates: outputs of modules, or parameters where no module has the output to itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur.framework.network.batch_norm import BATCH_NORMS, batch_norms_after
from secateur.framework.network.layers import PRUNABLE, prunable_layers, tensor_name, unit_is_channel
from secateur.framework.network.outputs import hooked
from secateur.framework.network.preserve import preserved_state
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import producer_parameters
from secateur.utils.subsampled import SubsampledConv2d

#: position of a gate: after the batch norm that follows the producer, also behind channelwise operations ("norm");
#: after one that directly follows it ("next norm"); or before any norm, on the producer's output ("producer")
Place = Literal["norm", "next norm", "producer"]
#: modules whose output is multiplied by a factor exactly if their weight and bias, or scale and shift, are
LAYERS = (*PRUNABLE, SubsampledConv2d)


@dataclass(frozen=True)
class GateSites:
    """The places of the gates of all channels; each producer is identified by the name of its weight.

    Attributes:
        model: The network.
        groups: The channel groups, one gate for each of their channels.
        outputs: Producer's weight -> name of the module whose output the gate multiplies.
        norms: Those of `outputs` that are batch norms.
        scaled: Name of a parameter that the gate multiplies instead -> producer's tensor.
        copied: Producers' weights whose gated outputs are modified in place later.
    """

    model: nn.Module
    groups: Groups
    outputs: dict[str, str]
    norms: frozenset[str]
    scaled: dict[str, str]
    copied: frozenset[str]

    @classmethod
    def find(cls, model: nn.Module, groups: Groups, sample: Tensor, place: Place = "norm") -> GateSites:
        """Find the places of the gates; `sample` is a batch that the model accepts. The model is not changed."""
        norms = {} if place == "producer" else following_norms(model, groups, sample, place == "next norm")
        outputs: dict[str, str] = {}
        scaled: dict[str, str] = {}
        for weight, name in norms.items():
            norm: Any = model.get_submodule(name)
            own = {tensor_name(name, key): weight for key in ("weight", "bias") if getattr(norm, key) is not None}
            if place == "next norm" or type(norm) in BATCH_NORMS or not own:
                outputs[weight] = name
            else:
                scaled |= own
        layers = prunable_layers(model)
        bare = [name for name in producer_parameters(model, groups) if _weight_of(name) not in norms]
        for tensor in bare:
            name = tensor.rpartition(".")[0]
            if type(layers.get(name)) in LAYERS and unit_is_channel(layers[name]):
                outputs[_weight_of(tensor)] = name
            else:
                scaled[tensor] = tensor
        elsewhere, copied = _observe(model, outputs, sample)
        for tensor in bare:
            if _weight_of(tensor) in elsewhere:
                outputs.pop(_weight_of(tensor), None)
                scaled[tensor] = tensor
        return cls(model, groups, outputs, frozenset(norms) & outputs.keys(), scaled, copied)

    def of(self, names: Iterable[str]) -> GateSites:
        """Return the places of some groups."""
        groups = {name: self.groups[name] for name in names}
        tensors = {part.tensor for group in groups.values() for part in group.produced}
        outputs = {weight: name for weight, name in self.outputs.items() if weight in tensors}
        scaled = {name: tensor for name, tensor in self.scaled.items() if tensor in tensors}
        return replace(self, groups=groups, outputs=outputs, scaled=scaled)

    def axis(self, weight: str, output: Tensor) -> int:
        """Return the dimension of the channels in a gated output."""
        return 1 if weight in self.norms else output.dim() + 1 - self.model.get_parameter(weight).dim()

    def producers(self, group: str) -> list[str]:
        """Return the producers of a group whose outputs are gated."""
        return [part.tensor for part in self.groups[group].produced if part.tensor in self.outputs]

    def on_outputs(self, group: str) -> bool:
        """Whether the gates of a group multiply outputs only."""
        scaled = set(self.scaled.values())
        return not any(part.tensor in scaled for part in self.groups[group].produced)


def following_norms(model: nn.Module, groups: Groups, sample: Tensor, directly: bool = False) -> dict[str, str]:
    """Return producer's weight -> name of the batch norm after it, for layers that do not share their weight."""
    layers = prunable_layers(model)
    users = [id(module.weight) for module in layers.values()]
    names = [name.rpartition(".")[0] for name in producer_parameters(model, groups, biases=False)]
    own = [name for name in names if name in layers and users.count(id(layers[name].weight)) == 1]
    found = batch_norms_after(model, own, lambda: model(sample), directly)
    return {tensor_name(layer, "weight"): norm for layer, norm in found.items()}


def _weight_of(tensor: str) -> str:
    """Return the name of the weight that belongs to a bias; other names are returned unchanged."""
    return tensor[: -len("bias")] + "weight" if tensor.endswith("bias") else tensor


class _Uses(TorchDispatchMode):
    """Records the owned tensors that are used while none of their owners runs."""

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()
        self.owners = owners
        self.running: list[str] = []
        self.elsewhere: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        used = {self.owners[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.owners}
        self.elsewhere |= used - set(self.running)
        return func(*args, **(kwargs or {}))


def _observe(model: nn.Module, outputs: dict[str, str], sample: Tensor) -> tuple[set[str], frozenset[str]]:
    """Return the producers used without their layer, and those whose gated outputs are modified in place."""
    layers = {weight: model.get_submodule(weight.rpartition(".")[0]) for weight in outputs}
    uses = _Uses({id(own): weight for weight in outputs for own in layers[weight].parameters(recurse=False)})
    seen: list[tuple[str, Tensor, int]] = []

    def enter(weight: str, *_: Any) -> None:
        uses.running.append(weight)

    def leave(weight: str, *_: Any) -> None:
        uses.running.remove(weight)

    def note(weight: str, _module: Any, _args: Any, _kwargs: Any, output: Tensor) -> None:
        seen.append((weight, output, output._version))

    before = [(layer, partial(enter, weight)) for weight, layer in layers.items()]
    after = [(layer, partial(leave, weight)) for weight, layer in layers.items()]
    after += [(model.get_submodule(name), partial(note, weight)) for weight, name in outputs.items()]
    with preserved_state(model), torch.no_grad(), hooked(after, before), uses:
        model(sample)
    return uses.elsewhere, frozenset(weight for weight, output, version in seen if output._version != version)
