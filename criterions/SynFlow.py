import math
from collections.abc import Iterable

from torch import nn

from secateur import Batch, Before, Criterion, Groups, LossFunction, Scores, UsageError, scoring
from secateur.framework.pruning.scoring.activations import synaptic_flow


class SynFlow(Criterion):
    """Synaptic flow |w * dR/dw| in 100 steps before training, without data.

    R is the sum of the outputs for an input of ones and the absolute values of all parameters; eval mode, with the
    statistics of batch norms at mean 0 and variance 1, as in a new network. The targets are exponential: each step
    keeps the same share. The flow is computed in float64; scores outside the range of float32 are divided by the
    largest one. Tanaka, Kunin, Yamins and Ganguli, 2020, arXiv:2006.05467.
    """

    granularity = "weight"
    schedule = Before(steps=100, spacing="exponential")
    paper = "arXiv:2006.05467"

    def cost(self, samples: int) -> float:
        """Return the cost of one pass of one sample."""
        return 1

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return |w * dR/dw| of every prunable weight, in its shape; a batch only gives the input's shape."""
        example = self.example_input
        if example is None:
            example = next((inputs for inputs, _ in list(batches)), None)
        if example is None:
            raise UsageError("SynFlow needs an example input or a batch for the shape of the input")
        with scoring(model):
            scores = synaptic_flow(model, example)
        largest = max(float(score.max()) for score in scores.values())
        if not math.isfinite(largest):
            raise UsageError(f"SynFlow: the flow through {type(model).__name__} is too large for float64")
        scale = largest if largest > 0 and not 1e-30 < largest < 1e30 else 1.0
        return {name: (score / scale).float() for name, score in scores.items()}
