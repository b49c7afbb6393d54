import torch
from torch import Tensor

from secateur import Never, WeightCriterion


class EmptyCrit(WeightCriterion):
    """Prunes nothing: the dense baseline."""

    schedule = Never()
    recommended = {"outer_layer_pruning": False}

    def formula(self, weight: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        """Return +inf, which is never pruned."""
        return torch.full_like(weight, torch.inf, dtype=torch.float32)
