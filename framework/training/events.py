"""What listeners of a run are given."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from secateur.framework.network.lineage import Staying
from secateur.framework.pruning.selection.select import Keep


@dataclass
class PruneEvent:
    """What one pruning step did."""

    #: None where a fixed threshold of the scores or a number of entries decided
    asked: float | None
    #: sparsity after the step: of the budget, which is nodes for channels and weights for weights unless told
    reached: float
    keep: Keep
    scores: dict[str, Tensor]
    #: entries (weights, channels, inputs) that were there before the step and are gone
    removed: int = 0
    #: inputs of the first layer that are left, bool `(inputs,)`, where they were ranked too
    inputs: Tensor | None = None
    #: how many channels or weights were to go, where a number was asked for
    number: int | None = None
    #: positions left along each cut dimension of the tensors, where weights and channels were ranked together
    staying: Staying = field(default_factory=dict)
