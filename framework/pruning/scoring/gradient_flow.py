"""The contribution of each parameter to the gradient flow, w * (H g), for the GraSP criterions."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.masks import Masks
from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.scoring.criterion import Batch, LossFunction
from secateur.framework.pruning.scoring.gradients import gradient_of, mean_gradients, softened


def flow_products(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: LossFunction,
    extra: Iterable[str] = (),
    *,
    temperature: float,
    everything: bool = False,
    train_batch_norm: bool = False,
) -> dict[str, Tensor]:
    """Compute w * (H g) of all prunable weights and of the parameters named in `extra`, in their shapes.

    g is the gradient of the mean loss of outputs / `temperature` over all samples with respect to the prunable
    weights that are not masked (or to all parameters, including biases and norms: `everything`), H the Hessian of
    that loss, so that w . (H g) is the derivative of the flow g . g / 2 with respect to the parameter's scale.
    With `train_batch_norm` batch norms use the statistics of the batch. The model is left unchanged.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name] for name in [*prunable_weights(model), *extra]}
    batches = _without_singles(list(batches)) if train_batch_norm else list(batches)
    soft = softened(loss, temperature)
    with scoring(model), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        for module in model.modules():
            if train_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        for parameter in wanted.values():
            parameter.requires_grad_(True)
        weights = parameters if everything else prunable_weights(model)
        _add_hessian_times_gradient(model, batches, soft, weights, wanted)
        return {name: gradient_of(parameter) * parameter.detach() for name, parameter in wanted.items()}


def _add_hessian_times_gradient(
    model: nn.Module,
    batches: list[Batch],
    loss: LossFunction,
    weights: Mapping[str, nn.Parameter],
    wanted: Mapping[str, nn.Parameter],
) -> None:
    """Add the derivatives of g . g / 2, for g with respect to `weights`, to `.grad` of `wanted`."""
    masks = Masks(model)
    gradients, _ = mean_gradients(model, batches, loss, weights)
    for name in weights:
        weights[name].grad = None
        if name in masks:  # masked weights do not contribute to the flow
            gradients[name] = gradients[name] * masks[name]
    samples = sum(len(inputs) for inputs, _ in batches)
    for inputs, targets in batches:
        value = loss(model(inputs), targets) * (len(inputs) / samples)
        slopes = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
        terms = [
            (gradient * slope).sum()
            for gradient, slope in zip(gradients.values(), slopes, strict=True)
            if slope is not None and slope.requires_grad
        ]
        if terms:
            torch.stack(terms).sum().backward(inputs=list(wanted.values()))


def _without_singles(batches: list[Batch]) -> list[Batch]:
    """Merge each batch of one sample, which has no statistics, with the batch before it (the first: after it)."""
    merged: list[Batch] = []
    for inputs, targets in batches:
        if merged and 1 in (len(inputs), len(merged[-1][0])):
            inputs, targets = torch.cat([merged[-1][0], inputs]), torch.cat([merged.pop()[1], targets])
        merged.append((inputs, targets))
    return merged
