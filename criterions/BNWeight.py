from collections.abc import Iterable

from torch import nn

from secateur import After, Batch, Criterion, Groups, LossFunction, Schedule, Scores, scoring, with_groups
from secateur.framework.pruning.scoring.channel_sums import producer_parameters
from secateur.framework.pruning.scoring.inputs import input_sample
from secateur.framework.pruning.scoring.norm_scales import norm_groups, over_norms, require_norms


class BNWeight(Criterion):
    """|scale| of the batch norm after each channel, on a trained network.

    The scales of several norms (a residual stage) are summed; channels without a norm are never pruned. Method 30
    of Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771; after Liu, Li, Shen, Huang, Yan and
    Zhang, 2017, arXiv:1708.06519.
    """

    granularity = "channel"
    schedule: Schedule = After()
    paper = "arXiv:1906.10771"

    def check(self, model: nn.Module) -> None:
        """Raise UsageError for a network without batch norm."""
        require_norms(model, self.name)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return |scale| of every free channel, `(channels,)` per group; a batch only gives the input's shape."""
        free, batches = with_groups(model, batches, groups)
        with scoring(model):
            norms = norm_groups(model, free, input_sample(self, batches, groups), self.name)
        parameters = producer_parameters(model, norms)
        sizes = {name: value.detach().abs() for name, value in parameters.items() if name.endswith("weight")}
        return {name: score.float() for name, score in over_norms(norms, sizes).items()}
