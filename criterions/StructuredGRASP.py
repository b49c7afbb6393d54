from collections.abc import Iterable

from torch import Tensor, nn

from secateur import Batch, Groups, LossFunction, Scores, input_columns, with_groups
from secateur.criterions.GRASP import GRASP
from secateur.framework.network.layers import tensor_name
from secateur.framework.pruning.scoring.channel_sums import over_channels, producer_parameters


class StructuredGRASP(GRASP):
    """Derivative of the gradient flow with respect to a gate on each channel, once before training.

    The score is the signed sum of w * (H g) over the rows and biases of all producers of the channel; channels
    with the lowest sum are pruned first. The options and the paper are those of GRASP: Wang, Zhang and Grosse,
    2020, arXiv:2002.07376.
    """

    granularity = "channel"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the signed sum of w * (H g) of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        products = self.products(model, batches, loss, producer_parameters(model, free))
        return {name: total.float() for name, total in over_channels(free, products).items()}

    def input_scores(self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, layer: str) -> Tensor:
        """Return the signed sum of w * (H g) of each column of the first layer's weight, `(inputs,)`."""
        products = self.products(model, batches, loss)[tensor_name(layer, "weight")]
        return input_columns(model.get_submodule(layer), products).sum(1).float()
