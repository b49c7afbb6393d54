import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from secateur import Batch, Before, Criterion, Groups, LossFunction, Scores, UsageError, prunable_weights, scoring
from secateur.framework.network.masks import PREFIX
from secateur.framework.network.outputs import output_tensors
from secateur.framework.pruning.scoring.gradients import in_double
from secateur.framework.pruning.scoring.inputs import input_sample


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
        with scoring(model):
            scores = synaptic_flow(model, input_sample(self, batches))
        largest = max(float(score.max()) for score in scores.values())
        if not math.isfinite(largest):
            raise UsageError(f"SynFlow: the flow through {type(model).__name__} is too large for float64")
        scale = largest if largest > 0 and not 1e-30 < largest < 1e30 else 1.0
        return {name: (score / scale).float() for name, score in scores.items()}


def synaptic_flow(model: nn.Module, example_input: Tensor) -> dict[str, Tensor]:
    """Compute |w * dR/dw| of every prunable weight in float64; R is the sum of the outputs for an input of ones.

    All parameters and buffers are replaced by their absolute values, and the running statistics of batch norms by
    mean 0 and variance 1, as in a new network. The model is not changed; call it inside `scoring`.
    """
    named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if PREFIX not in n)]
    tensors = {name: in_double(values.detach().abs()) for name, values in named if values.is_floating_point()}
    for name in tensors:
        if name.endswith("running_mean"):
            tensors[name] = torch.zeros_like(tensors[name])
        elif name.endswith("running_var"):
            tensors[name] = torch.ones_like(tensors[name])
    weights = {name: tensors[name].requires_grad_() for name in prunable_weights(model)}
    ones = torch.ones_like(example_input)
    ones = in_double(ones) if ones.is_floating_point() else ones
    outputs = output_tensors(functional_call(model, tensors, (ones,)))
    flow = torch.stack([output.sum() for output in outputs]).sum()
    gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True, materialize_grads=True)
    return {
        name: (weight.detach() * gradient).abs()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
