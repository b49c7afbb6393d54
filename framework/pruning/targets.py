"""From a sparsity of the dense network to keep masks: which entries, and how many, meet the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from framework.lineage import lineage_of
from framework.prunable import output_dim, prunable_layers, prunable_weights, tensor_name
from framework.pruning.channels import ChannelGroup, Groups
from framework.pruning.masks import Masks
from framework.pruning.producers import units_per_channel
from framework.pruning.selection import Keep, select


def keep_weights(
    model: nn.Module, scores: Mapping[str, Tensor], sparsity: float, scope: str, spared: set[str]
) -> Keep:
    """Masks after which `sparsity` of the dense network's prunable weights is gone.

    `spared` weights are never pruned; they count in the total all the same.
    """
    dense, weights = lineage_of(model).dense, prunable_weights(model)
    masks = Masks(model)
    gone = {
        name: torch.Size(dense.get(name, weight.shape)).numel() - weight.numel()
        for name, weight in weights.items()
    }
    ranked = {
        name: torch.full_like(score, torch.inf) if name in spared else score for name, score in scores.items()
    }
    current = {name: masks[name] for name in weights if name in masks}
    return select(ranked, sparsity, scope=scope, current=current, gone={k: v for k, v in gone.items() if v})


def keep_channels(
    model: nn.Module, groups: Groups, scores: Mapping[str, Tensor], sparsity: float, scope: str
) -> Keep:
    """Channels to keep so that the node sparsity of the dense network comes as near to `sparsity` as it can.

    A channel of a group with several layers is several nodes, so the number of channels is found by
    bisection; on plain chains it is that share of the channels. With scope "layer" every group gives the same
    share.
    """
    nodes = _Nodes(model, {name: groups[name] for name in scores})
    share = _by_layer if scope == "layer" else _over_all
    return share(nodes, scores, sparsity)


class _Nodes:
    """Counts output units of hidden layers, in the dense network and after a selection."""

    def __init__(self, model: nn.Module, groups: Groups) -> None:
        lineage = lineage_of(model)
        hidden = {
            name: module
            for name, module in prunable_layers(model).items()
            if name not in (lineage.output_layers or ())
        }
        self.dense = self.now = 0
        for name, module in hidden.items():
            weight, dim = tensor_name(name, "weight"), output_dim(module)
            shape = tuple(getattr(module, "weight").shape)  # noqa: B009 (mypy takes it for a module)
            self.now += shape[dim]
            self.dense += lineage.dense.get(weight, shape)[dim]
        self.per_channel = {name: units_per_channel(model, group) for name, group in groups.items()}
        self.gone = {name: _dense_channels(model, group) - group.channels for name, group in groups.items()}

    def sparsity(self, keep: Keep) -> float:
        removed = sum(int((~mask).sum()) * self.per_channel[name] for name, mask in keep.items())
        return 1 - (self.now - removed) / max(1, self.dense)


def _dense_channels(model: nn.Module, group: ChannelGroup) -> int:
    """How many channels the group had before the first cut."""
    kept, dense = lineage_of(model).kept, lineage_of(model).dense
    first = group.produced[0]
    if (first.tensor, first.dim) not in kept:
        return group.channels
    # Groups that share a producer (a split) cannot be told apart once they are cut: each counts as it is.
    if first.index.numel() != len(kept[first.tensor, first.dim]):
        return group.channels
    return dense[first.tensor][first.dim] // first.index.shape[1]


def _over_all(nodes: _Nodes, scores: Mapping[str, Tensor], sparsity: float) -> Keep:
    present = sum(score.numel() for score in scores.values())

    def remove(count: int) -> Keep:
        return select(scores, count / present if present else 0.0)

    if nodes.sparsity(remove(0)) >= sparsity:
        return remove(0)
    low = _bisect(lambda count: nodes.sparsity(remove(count)) >= sparsity, 0, present)
    return min((remove(count) for count in (low, low - 1)), key=lambda keep: abs(nodes.sparsity(keep) - sparsity))


def _by_layer(nodes: _Nodes, scores: Mapping[str, Tensor], sparsity: float) -> Keep:
    def remove(share: float) -> Keep:
        return select(scores, share, scope="layer", gone={name: nodes.gone[name] for name in scores})

    keep = remove(sparsity)
    # Rounding moves each group by half a channel at most; further off, something is protected or gone already.
    slack = sum(nodes.per_channel[name] / 2 for name in scores) / max(1, nodes.dense)
    if abs(nodes.sparsity(keep) - sparsity) <= slack:
        return keep
    steps = 1 << 20
    return remove(_bisect(lambda step: nodes.sparsity(remove(step / steps)) >= sparsity, 0, steps) / steps)


def _bisect(reached: Callable[[int], bool], low: int, high: int) -> int:
    """The least number in (low, high] at which `reached` holds; `high` where it never does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
