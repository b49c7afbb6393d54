from collections.abc import Iterable

from torch import nn

from secateur import After, Batch, Criterion, Groups, LossFunction, Schedule, Scores, scoring
from secateur.framework.pruning.scoring.inputs import with_sample
from secateur.framework.pruning.scoring.norm_scales import NormScales, require_norms


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
        free, sample = with_sample(self, model, batches, groups)
        with scoring(model):
            norms = NormScales.find(model, free, sample, self.name)
        scales = {name: value for name, value in norms.parameters.items() if name.endswith("weight")}
        sizes = {name: scale.detach().abs() for name, scale in scales.items()}
        return {name: score.float() for name, score in norms.sums(sizes).items()}
