"""The initial weights of a run, restricted to the channels that remain after cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.utils.errors import UsageError


@dataclass(frozen=True)
class InitialWeights:
    """Copies of all parameters, and the original indices of their channels at that time."""

    tensors: dict[str, Tensor]
    kept: dict[tuple[str, int], Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> InitialWeights:
        """Copy the present parameters of a model."""
        named = model.named_parameters(remove_duplicate=False)
        return cls({name: parameter.detach().clone() for name, parameter in named}, dict(lineage_of(model).kept))

    def now(self, model: nn.Module, name: str) -> Tensor:
        """Return the copy of a parameter without the channels that were cut since."""
        values, lineage = self.tensors[name], lineage_of(model)
        for dim in range(values.dim()):
            left = lineage.kept.get((name, dim))
            if left is not None:
                before = self.kept.get((name, dim), torch.arange(values.shape[dim]))
                values = values.index_select(dim, torch.isin(before, left).nonzero().flatten().to(values.device))
        return values

    @staticmethod
    def moved(
        initial: InitialWeights | None, model: nn.Module, weights: Mapping[str, Tensor], who: str
    ) -> dict[str, Tensor]:
        """Return w - w0 of each weight; UsageError if w0 is missing or no weight has changed."""
        if initial is None:
            raise UsageError(f"{who}: use_init needs the initial weights: call start(model) before training")
        unknown = [name for name, weight in weights.items() if name not in initial.tensors]
        if unknown:
            raise UsageError(f"{who}: use_init has no initial weights of {', '.join(map(repr, unknown))}")
        differences = {name: weight - initial.now(model, name).to(weight) for name, weight in weights.items()}
        if not any(bool(difference.any()) for difference in differences.values()):
            raise UsageError(f"{who}: use_init: the weights equal the initial weights, all scores would be zero")
        return differences
