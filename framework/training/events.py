"""Events that are passed to the listeners of a run."""

from dataclasses import dataclass, field

from torch import Tensor

from secateur.framework.network.lineage import KeptIndices
from secateur.framework.pruning.selection.ranking import Keep


@dataclass
class PruneEvent:
    """Result of one pruning step."""

    #: target sparsity; None if a fixed threshold of the scores or a number of entries determined the step
    asked: float | None
    #: sparsity after the step, as a share of the budget (default: nodes for channels, weights for weights)
    reached: float
    #: kept entries, bool, by the name of the parameter or channel group
    keep: Keep
    #: scores by the name of the parameter or channel group
    scores: dict[str, Tensor]
    #: number of entries (weights, channels, inputs) that this step pruned
    removed: int = 0
    #: kept inputs of the first layer, bool `(inputs,)`, if they were ranked
    inputs: Tensor | None = None
    #: number of channels or weights to prune, if a number was requested
    number: int | None = None
    #: measure of `asked` and `reached`, one of `budgets.BUDGETS`
    budget: str = "nodes"
    #: kept positions along each cut dimension of the tensors, if weights and channels were ranked together
    kept_indices: KeptIndices = field(default_factory=dict)
