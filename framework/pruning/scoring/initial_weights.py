"""The weights a run started from, followed through the cuts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.framework.network.lineage import lineage_of
from secateur.utils.errors import UsageError


@dataclass(frozen=True)
class InitialWeights:
    """Copies of all parameters, and the original indices that were there then."""

    tensors: dict[str, Tensor]
    kept: dict[tuple[str, int], Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> InitialWeights:
        """Remember them as they are now."""
        named = model.named_parameters(remove_duplicate=False)
        return cls({name: one.detach().clone() for name, one in named}, dict(lineage_of(model).kept))

    def now(self, model: nn.Module, name: str) -> Tensor:
        """The copy of a parameter, without what was cut since."""
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
        """w - w0 of each weight; UsageError where w0 is not known, or nothing has moved yet."""
        if initial is None:
            raise UsageError(f"{who}: use_init needs the initial weights: call start(model) before training")
        unknown = [name for name, weight in weights.items() if name not in initial.tensors]
        if unknown:
            raise UsageError(f"{who}: use_init knows no initial weights of {', '.join(map(repr, unknown))}")
        found = {name: weight - initial.now(model, name).to(weight) for name, weight in weights.items()}
        if not any(bool(one.any()) for one in found.values()):
            raise UsageError(f"{who}: use_init: the weights are still the initial ones, all scores would be zero")
        return found
