"""Channel groups whose batch norms are in the place of the layers that produce the channels."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from secateur.framework.network.layers import tensor_name
from secateur.framework.pruning.channels.groups import Groups, Slice
from secateur.framework.pruning.scoring.channel_sums import over_channels
from secateur.framework.pruning.scoring.gates.sites import following_norms
from secateur.utils.errors import UsageError


def norm_groups(model: nn.Module, groups: Groups, sample: Tensor, who: str) -> Groups:
    """Return the groups with `produced` of the scales and shifts of the batch norms after the producers.

    It is empty for a group whose producers have no norm. Raises UsageError, beginning with `who`, for a network
    without batch norm.
    """
    require_norms(model, who)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    norms = following_norms(model, groups, sample)
    scaled = {weight: norm for weight, norm in norms.items() if tensor_name(norm, "weight") in names}
    found = {}
    for name, group in groups.items():
        slices = [
            Slice(tensor_name(scaled[part.tensor], key), 0, part.index)
            for part in group.produced
            if part.tensor in scaled
            for key in ("weight", "bias")
        ]
        found[name] = replace(group, produced=tuple(part for part in slices if part.tensor in names))
    if not any(group.produced for group in found.values()):
        raise UsageError(f"{who}: no batch norm of {type(model).__name__} follows a channel that may be pruned")
    return found


def over_norms(groups: Groups, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sum `terms` (name of a scale or shift -> one value per unit) over each channel: `(channels,)` per group.

    The sums are +inf, so that the channels are never pruned, for a group whose producers have no norm.
    """
    sums = over_channels({name: group for name, group in groups.items() if group.produced}, terms)
    never = next(iter(sums.values())).new_full((), torch.inf, dtype=torch.float32)
    return {name: sums[name] if name in sums else never.repeat(group.channels) for name, group in groups.items()}


def require_norms(model: nn.Module, who: str) -> None:
    """Raise UsageError unless the network has a batch norm with a scale."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not any(norm.weight is not None for norm in norms):
        raise UsageError(
            f"{who} reads the scales of batch norms, and {type(model).__name__} has none: "
            "choose a criterion of weights or a gate criterion"
        )
