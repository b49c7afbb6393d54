"""The contribution of each parameter to the gradient flow, w * (H g), for the GraSP criterions."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.framework.network.layers import prunable_layers, prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gradients import halves, mean_gradients, softened


@dataclass(frozen=True)
class GradientFlow:
    """Options of the gradient flow, and its computation.

    Attributes:
        temperature: The outputs are divided by it before the loss.
        train_batch_norm: Batch norms use the statistics of the batch. Default: eval mode.
        halves: Split each batch in two; this changes the result only if samples of a batch interact.
        xavier: Generator to re-initialise the linear weights (Xavier, normal) of a copy for the scoring. None
            (default): the present weights.
        everything: g is the gradient with respect to all parameters, including biases and norms. Default: with
            respect to the prunable weights.
    """

    temperature: float = 200.0
    train_batch_norm: bool = False
    halves: bool = False
    xavier: torch.Generator | None = None
    everything: bool = False

    def products(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, extra: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Compute w * (H g) of all prunable weights and of the parameters named in `extra`, in their shapes.

        g is the gradient of the mean loss over all samples with respect to the prunable weights that are not
        masked (or to all parameters: `everything`), H the Hessian of that loss, so that w . (H g) is the
        derivative of the flow g . g / 2 with respect to the parameter's scale. The model is left unchanged.
        """
        if self.xavier is not None:
            model = _drawn_anew(model, self.xavier)
        parameters = dict(model.named_parameters())
        names = dict.fromkeys([*prunable_weights(model), *extra])
        wanted = {name: parameters[name] for name in names}
        given = [half for batch in batches for half in (halves(*batch) if self.halves else [batch])]
        if self.train_batch_norm:
            given = _without_singles(given)
        with scoring(model), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            for module in model.modules():
                if self.train_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            products = self._hessian_times_gradient(model, given, loss, wanted)
        return {name: products[name] * wanted[name].detach() for name in wanted}

    def _hessian_times_gradient(
        self, model: nn.Module, batches: list[Batch], loss: LossFunction, wanted: Mapping[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        soft = softened(loss, self.temperature)
        for parameter in wanted.values():
            parameter.requires_grad_(True)
        weights = dict(model.named_parameters()) if self.everything else prunable_weights(model)
        masks = Masks(model)
        gradients, _ = mean_gradients(model, batches, soft, weights)
        for name in weights:
            weights[name].grad = None
            if name in masks:  # masked weights do not contribute to the flow
                gradients[name] = gradients[name] * masks[name]
        samples = sum(len(inputs) for inputs, _ in batches)
        for inputs, targets in batches:
            value = soft(model(inputs), targets) * (len(inputs) / samples)
            slopes = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
            terms = [
                (gradient * slope).sum()
                for gradient, slope in zip(gradients.values(), slopes, strict=True)
                if slope is not None and slope.requires_grad
            ]
            if terms:
                torch.stack(terms).sum().backward(inputs=list(wanted.values()))
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in wanted.items()
        }


def _without_singles(batches: list[Batch]) -> list[Batch]:
    """Merge each batch of one sample, which has no statistics, with the batch before it (the first: after it)."""
    merged: list[Batch] = []
    for inputs, targets in batches:
        if merged and 1 in (len(inputs), len(merged[-1][0])):
            inputs, targets = torch.cat([merged[-1][0], inputs]), torch.cat([merged.pop()[1], targets])
        merged.append((inputs, targets))
    return merged


def _drawn_anew(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy with re-initialised linear weights; masked weights remain zero."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for module in prunable_layers(twin).values():
            if isinstance(module, nn.Linear):
                values = torch.empty(module.weight.shape)
                module.weight.copy_(nn.init.xavier_normal_(values, generator=generator))
    Masks(twin).apply()
    return twin
