from collections.abc import Iterable, Iterator

from torch import nn

from secateur import Batch, Groups, LossFunction, channel_groups
from secateur.criterions.TaylorGate import TaylorGate
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.ablation.loss_change import loss_changes
from secateur.framework.pruning.scoring.gradients import Part


class Oracle(TaylorGate):
    """(L without the channel - L)^2, averaged over batches; after training. The Taylor criterions approximate it.

    The score is exact: the channel is removed as in a cut, with the gate of each of its outputs at zero, and the
    loss is recomputed, for many channels at once. Eval mode. Method 40 of Molchanov, Mallya, Tyree, Frosio and
    Kautz, 2019, arXiv:1906.10771.
    """

    exact = True

    def __init__(self) -> None:
        super().__init__(divisor="none")
        self._channels = 1

    def start(self, model: nn.Module) -> None:
        """Determine the number of channels."""
        if self.example_input is not None:
            groups = free_groups(channel_groups(model, self.example_input))
            self._channels = sum(group.channels for group in groups.values())

    def cost(self, samples: int) -> float:
        """Return the cost of at most one forward pass per channel and sample."""
        return samples * (1 + self._channels) / 3

    def parts(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups
    ) -> Iterator[Part]:
        """Yield the size of each batch and its scores."""
        for samples, changes in loss_changes(model, batches, loss, groups):
            yield samples, {name: change.square() for name, change in changes.items()}
