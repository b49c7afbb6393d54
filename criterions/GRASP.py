import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from secateur import Batch, Before, Criterion, Data, Groups, LossFunction, Masks, Scores, prunable_weights
from secateur.framework.network.layers import prunable_layers
from secateur.framework.pruning.scoring.gradient_flow import flow_products
from secateur.framework.pruning.scoring.gradients import check_flow_options, halves


class GRASP(Criterion):
    """Gradient signal preservation w * (H g), once before training: the highest -w * (H g) is pruned first.

    g is the gradient of the mean loss of outputs / `temperature` over all samples with respect to the prunable
    weights, H its Hessian; eval mode. The options `train_batch_norm`, `halves` (split each batch in two) and
    `xavier` (re-initialise linear weights for the scoring) reproduce the authors' code. `original_polarity`
    reverses the ranking, as in SNIP-it's code. Wang, Zhang and Grosse, 2020, arXiv:2002.07376.
    """

    granularity = "weight"
    schedule = Before()
    data = Data("balanced", per_class=25)
    paper = "arXiv:2002.07376"

    def __init__(
        self, *, temperature: float = 200.0, train_batch_norm: bool = False, halves: bool = False,
        xavier: bool = False, original_polarity: bool = False,
    ) -> None:  # fmt: skip
        check_flow_options(self.name, temperature)
        super().__init__()
        self.temperature, self.train_batch_norm, self.halves = temperature, train_batch_norm, halves
        self.xavier, self.original_polarity = xavier, original_polarity

    def cost(self, samples: int) -> float:
        """Return the cost of one pass for g and one that is differentiated twice."""
        return 3 * samples

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the signed w * (H g) of every prunable weight, in the weight's shape."""
        products = self.products(model, batches, loss)
        return {name: products[name].float() for name in prunable_weights(model)}

    def products(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, extra: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Return the signed w * (H g) of all prunable weights and of the parameters named in `extra`."""
        if self.xavier:
            model = _with_new_linear_weights(model, self.generator())
        given = [half for batch in batches for half in (halves(*batch) if self.halves else [batch])]
        flow = flow_products(
            model, given, loss, extra, temperature=self.temperature, train_batch_norm=self.train_batch_norm
        )
        return {name: -product for name, product in flow.items()} if self.original_polarity else flow


@torch.no_grad()
def _with_new_linear_weights(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy with re-initialised linear weights; masked weights remain zero."""
    twin = copy.deepcopy(model)
    for module in prunable_layers(twin).values():
        if isinstance(module, nn.Linear):
            module.weight.copy_(nn.init.xavier_normal_(torch.empty(module.weight.shape), generator=generator))
    Masks(twin).apply()
    return twin
