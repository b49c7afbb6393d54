from collections.abc import Iterable

from torch import nn

from secateur import After, Batch, Criterion, Data, Groups, LossFunction, Scores, prunable_weights, scoring
from secateur.framework.pruning.scoring.input_features import input_norms, over_inputs
from secateur.framework.pruning.selection.input_features import readers_of_weights


class Wanda(Criterion):
    """|w| times the L2 norm of its input feature, ranked within each output's row, after training.

    The norm of a feature is taken over samples and positions; a convolution's features are its input channels.
    Sun, Liu, Bair and Kolter, 2023, arXiv:2306.11695.
    """

    granularity = "weight"
    scope = "row"
    schedule = After()
    data = Data("random", samples=128)
    paper = "arXiv:2306.11695"

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return |w| * |x|_2 of every prunable weight, in the weight's shape; zero if a layer is never called."""
        layers = readers_of_weights(model)
        with scoring(model):
            norms = input_norms(model, batches)
        return {
            name: (weight.detach().abs() * over_inputs(layers[name], norms[name])).float()
            for name, weight in prunable_weights(model).items()
        }
