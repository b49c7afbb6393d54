import torch
from torch import Tensor

from secateur import After, ChannelWeightCriterion, Schedule, UsageError


class ChannelNorm(ChannelWeightCriterion):
    """Norm of each channel's weights (`p` 1 or 2), after training, followed by fine-tuning.

    The norm is taken over the rows of all producers of the channel, without biases. Li, Kadav, Durdanovic, Samet
    and Graf, 2016, arXiv:1608.08710.
    """

    schedule: Schedule = After()
    paper = "arXiv:1608.08710"

    def __init__(self, *, p: int = 1) -> None:
        if p not in (1, 2):
            raise UsageError(f"ChannelNorm: p must be 1 or 2, got {p}")
        super().__init__(p=p)
        self.p = p

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return (sum |w|^p)^(1/p)."""
        return torch.linalg.vector_norm(weight, self.p, dim=1)
