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
        scales: Producer's weight -> name, scale and shift of the norm after the producer.
    """

    groups: Groups
    scales: dict[str, tuple[str, nn.Parameter, nn.Parameter | None]]

    @classmethod
    def find(cls, model: nn.Module, groups: Groups, sample: Tensor, who: str) -> NormScales:
        """Find the norms; raise UsageError, beginning with `who`, for a network without batch norm."""
        require_norms(model, who)
        scales = {}
        for weight, name in following_norms(model, groups, sample).items():
            norm = model.get_submodule(name)
            if isinstance(norm.weight, nn.Parameter):
                scales[weight] = (name, norm.weight, norm.bias if isinstance(norm.bias, nn.Parameter) else None)
        if not scales:
            raise UsageError(
                f"{who}: no batch norm of {type(model).__name__} follows a channel that may be pruned"
            )
        return cls(groups, scales)

    def parameters(self, shifts: bool = True) -> dict[str, nn.Parameter]:
        """Return all scales, and with `shifts` all shifts, by parameter name."""
        parameters: dict[str, nn.Parameter] = {}
        for name, scale, shift in self.scales.values():
            parameters[tensor_name(name, "weight")] = scale
            if shifts and shift is not None:
                parameters[tensor_name(name, "bias")] = shift
        return parameters

    def sums(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum `terms` (name of a scale or shift -> one value per unit) over each channel: `(channels,)` per group.

        The sums are +inf, so that the channels are never pruned, for a group whose producers have no norm.
        """
        units = {}
        for weight, (name, _, _) in self.scales.items():
            units[weight] = terms[tensor_name(name, "weight")]
            if tensor_name(name, "bias") in terms:
                units[weight] = units[weight] + terms[tensor_name(name, "bias")]
        device = next(iter(units.values())).device
        sums = {}
        for name, group in self.groups.items():
            known = any(part.tensor in units for part in group.produced)
            never = torch.full((group.channels,), torch.inf, device=device)
            sums[name] = add_units({name: group}, units)[name] if known else never
        return sums


def require_norms(model: nn.Module, who: str) -> None:
    """Raise UsageError unless the network has a batch norm with a scale."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not any(norm.weight is not None for norm in norms):
        raise UsageError(
            f"{who} reads the scales of batch norms, and {type(model).__name__} has none: "
            "choose a criterion that reads weights or gates, such as TaylorGate"
        )
