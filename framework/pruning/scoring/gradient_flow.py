"""What each parameter adds to the gradient flow g . H g, for GraSP and its kin."""

from __future__ import annotations

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
from secateur.framework.pruning.scoring.gradients import mean_gradients


@dataclass(frozen=True)
class GradientFlow:
    """How the flow is taken: the loss is that of outputs / `temperature`, in eval mode unless said otherwise."""

    temperature: float = 200.0
    #: batch norms use the statistics of the batch
    train_batch_norm: bool = False
    #: each batch passes as two, which changes something only where samples see each other
    halves: bool = False
    #: linear weights are drawn anew (Xavier, normal) for the scoring, from this generator
    xavier: torch.Generator | None = None
    #: g is the gradient by all parameters, those of norms and biases too
    everything: bool = False

    def products(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, extra: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """w * (H g) for all prunable weights and the parameters named in `extra`, in their shapes; pure.

        g is the gradient of the mean loss over all samples by the prunable weights that no mask holds (or by all
        parameters: `everything`), H the Hessian of that loss, so that (H g) . w is how the flow g . g / 2 changes
        with the parameter's scale.
        """
        if self.xavier is not None:
            model = _drawn_anew(model, self.xavier)
        parameters = dict(model.named_parameters())
        names = dict.fromkeys([*prunable_weights(model), *extra])
        wanted = {name: parameters[name] for name in names}
        given = [half for batch in batches for half in (_halves(batch) if self.halves else [batch])]
        if self.train_batch_norm:
            given = _without_singles(given)
        with scoring(model), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            for module in model.modules():
                if self.train_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
            found = self._hessian_times_gradient(model, given, loss, wanted)
        return {name: found[name] * wanted[name].detach() for name in wanted}

    def _hessian_times_gradient(
        self, model: nn.Module, batches: list[Batch], loss: LossFunction, wanted: Mapping[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        def soft(outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs / self.temperature, targets)

        for parameter in wanted.values():
            parameter.requires_grad_(True)
        weights = dict(model.named_parameters()) if self.everything else prunable_weights(model)
        masks = Masks(model)
        gradients, _ = mean_gradients(model, batches, soft, weights)
        for name in weights:
            weights[name].grad = None
            if name in masks:  # what cannot move adds nothing to the flow
                gradients[name] = gradients[name] * masks[name]
        samples = sum(len(inputs) for inputs, _ in batches)
        for inputs, targets in batches:
            value = soft(model(inputs), targets) * (len(inputs) / samples)
            each = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
            terms = [
                (gradient * one).sum()
                for gradient, one in zip(gradients.values(), each, strict=True)
                if one is not None and one.requires_grad
            ]
            if terms:
                torch.stack(terms).sum().backward(inputs=list(wanted.values()))
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in wanted.items()
        }


def _halves(batch: Batch) -> list[Batch]:
    inputs, targets = batch
    size = -(-len(inputs) // 2)
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def _without_singles(batches: list[Batch]) -> list[Batch]:
    """A single sample has no statistics: it joins the batch before it, and the first one the batch after it."""
    found: list[Batch] = []
    for inputs, targets in batches:
        if found and 1 in (len(inputs), len(found[-1][0])):
            inputs, targets = torch.cat([found[-1][0], inputs]), torch.cat([found.pop()[1], targets])
        found.append((inputs, targets))
    return found


def _drawn_anew(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy whose linear weights are drawn anew; what is masked stays so."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for module in prunable_layers(twin).values():
            if isinstance(module, nn.Linear):
                values = torch.empty(module.weight.shape)
                module.weight.copy_(nn.init.xavier_normal_(values, generator=generator))
    Masks(twin).apply()
    return twin
