"""Node sparsity: the share of the dense network's units that are pruned."""

from torch import Tensor, nn

from secateur.framework.network.layers import output_dim, prunable_layers, tensor_name
from secateur.framework.network.lineage import lineage_of


def node_sparsity(model: nn.Module, example_input: Tensor) -> float:
    """Return 1 - (output units of prunable layers now / in the dense network), without the output layers.

    A unit whose weights are all zero counts as pruned. Returns 0 for a network without hidden units.
    """
    from secateur.framework.pruning.channels.discovery import channel_groups

    lineage = lineage_of(model)
    if lineage.output_layers is None:
        channel_groups(model, example_input)
    total = remaining = 0
    for name, module in prunable_layers(model).items():
        if name in (lineage.output_layers or ()):
            continue
        weight, dim = module.weight, output_dim(module)
        assert isinstance(weight, Tensor)
        total += lineage.dense.get(tensor_name(name, "weight"), tuple(weight.shape))[dim]
        remaining += int(weight.detach().movedim(dim, 0).flatten(1).any(dim=1).sum())
    return 1 - remaining / total if total else 0.0
