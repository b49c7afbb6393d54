"""Scales and shifts of the batch norms after the channels' producers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import tensor_name
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import add_units
from secateur.framework.pruning.scoring.gates.sites import following_norms
from secateur.utils.errors import UsageError


@dataclass(frozen=True)
class NormScales:
    """The batch norms of all groups.

    Attributes:
        groups: The channel groups.
        parameters: All scales and shifts, by parameter name.
        names: Producer's weight -> names of the scale and the shift of the norm after the producer.
    """

    groups: Groups
    parameters: dict[str, nn.Parameter]
    names: dict[str, list[str]]

    @classmethod
    def find(cls, model: nn.Module, groups: Groups, sample: Tensor, who: str) -> NormScales:
        """Find the norms; raise UsageError, beginning with `who`, for a network without batch norm."""
        require_norms(model, who)
        norms = cls(groups, {}, {})
        for weight, name in following_norms(model, groups, sample).items():
            tensors = {key: getattr(model.get_submodule(name), key) for key in ("weight", "bias")}
            own = {tensor_name(name, key): t for key, t in tensors.items() if isinstance(t, nn.Parameter)}
            if tensor_name(name, "weight") in own:
                norms.parameters.update(own)
                norms.names[weight] = list(own)
        if not norms.names:
            raise UsageError(
                f"{who}: no batch norm of {type(model).__name__} follows a channel that may be pruned"
            )
        return norms

    def sums(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum `terms` (name of a scale or shift -> one value per unit) over each channel: `(channels,)` per group.

        The sums are +inf, so that the channels are never pruned, for a group whose producers have no norm.
        """
        units = {
            weight: torch.stack([terms[name] for name in names if name in terms]).sum(0)
            for weight, names in self.names.items()
        }
        never = next(iter(units.values())).new_full((), torch.inf, dtype=torch.float32)
        return {
            name: add_units({name: group}, units)[name]
            if any(part.tensor in units for part in group.produced)
            else never.repeat(group.channels)
            for name, group in self.groups.items()
        }


def require_norms(model: nn.Module, who: str) -> None:
    """Raise UsageError unless the network has a batch norm with a scale."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not any(norm.weight is not None for norm in norms):
        raise UsageError(
            f"{who} reads the scales of batch norms, and {type(model).__name__} has none: "
            "choose a criterion that reads weights or gates, such as TaylorGate"
        )
