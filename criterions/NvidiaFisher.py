from collections.abc import Iterable

from torch import nn

from secateur import Batch, Groups, LossFunction, Scores, scoring, with_groups
from secateur.criterions.Fisher import Fisher
from secateur.framework.pruning.scoring.channel_sums import producer_parameters
from secateur.framework.pruning.scoring.gradients import peek, softened
from secateur.framework.pruning.scoring.norm_scales import norm_groups, over_norms, require_norms


class NvidiaFisher(Fisher):
    """scale^2 * F + shift^2 * F of the batch norm after each channel, with F as in Fisher; during training.

    The terms of several norms are summed; channels without a norm are never pruned. Lubana and Dick, 2020,
    arXiv:2009.11839, after Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    #: Fisher's are of weights; these scores are of the norms' scales and shifts
    element_scores = None  # type: ignore[assignment]

    def check(self, model: nn.Module) -> None:
        """Raise UsageError for a network without batch norm."""
        require_norms(model, self.name)

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return scale^2 * F + shift^2 * F of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        sample, batches = peek(batches)
        with scoring(model):
            norms = norm_groups(model, free, sample[:1], self.name)
            parameters = producer_parameters(model, norms)
            fisher = self.gradients(model, batches, softened(loss, self.temperature), parameters)
        terms = {name: self.formula(value.detach(), fisher[name]) for name, value in parameters.items()}
        return {name: total.float() for name, total in over_norms(norms, terms).items()}
