"""Scales and shifts of the batch norms behind each channel's producers, for measures that read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import tensor_name
from secateur.framework.pruning.channels.groups import Groups
from secateur.framework.pruning.scoring.channel_sums import add_units
from secateur.framework.pruning.scoring.gates.sites import GateSites
from secateur.utils.errors import UsageError


@dataclass(frozen=True)
class NormScales:
    """The norms of all groups."""

    groups: Groups
    #: producer's weight -> name, scale and shift of the norm behind it
    scales: dict[str, tuple[str, nn.Parameter, nn.Parameter | None]]

    @classmethod
    def find(cls, model: nn.Module, groups: Groups, sample: Tensor, who: str) -> NormScales:
        """UsageError, beginning with `who`, for a network without batch norm."""
        require_norms(model, who)
        scales = GateSites.find(model, groups, sample).scales()
        if not scales:
            raise UsageError(
                f"{who}: no batch norm of {type(model).__name__} follows a channel that may be pruned"
            )
        return cls(groups, scales)

    def parameters(self, shifts: bool = True) -> dict[str, nn.Parameter]:
        """All scales, and shifts, by their own names."""
        found: dict[str, nn.Parameter] = {}
        for name, scale, shift in self.scales.values():
            found[tensor_name(name, "weight")] = scale
            if shifts and shift is not None:
                found[tensor_name(name, "bias")] = shift
        return found

    def sums(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per channel the sum of `terms` (scale's or shift's name -> one number a unit): `(channels,)` per group.

        +inf for a group none of whose producers has a norm behind it: what cannot be told is not pruned.
        """
        units = {}
        for weight, (name, _, _) in self.scales.items():
            units[weight] = terms[tensor_name(name, "weight")]
            if tensor_name(name, "bias") in terms:
                units[weight] = units[weight] + terms[tensor_name(name, "bias")]
        device = next(iter(units.values())).device
        found = {}
        for name, group in self.groups.items():
            known = any(part.tensor in units for part in group.produced)
            never = torch.full((group.channels,), torch.inf, device=device)
            found[name] = add_units({name: group}, units)[name] if known else never
        return found


def require_norms(model: nn.Module, who: str) -> None:
    """UsageError unless the network has a batch norm with a scale."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    if not any(one.weight is not None for one in norms):
        raise UsageError(
            f"{who} reads the scales of batch norms, and {type(model).__name__} has none: "
            "choose a criterion that reads weights or gates, such as TaylorGate"
        )
