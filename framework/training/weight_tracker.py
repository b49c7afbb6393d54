"""A listener that tracks sign flips, mean and variance of every prunable weight during training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.lineage import lineage_of
from secateur.framework.training.hooks import hookimpl
from secateur.utils.files.atomic import replacing

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


@dataclass
class Followed:
    """Statistics of one weight tensor, each of its shape.

    flips: int32, number of sign changes between consecutive nonzero values. sign: int8, sign of the last nonzero
    value. mean, squares: float32, running mean and sum of squared deviations from it (Welford's algorithm).
    """

    flips: Tensor
    sign: Tensor
    mean: Tensor
    squares: Tensor

    def cut(self, dim: int, index: Tensor) -> None:
        """Keep the positions `index` along one dimension."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.index_select(dim, index.to(tensor.device)))


class WeightTracker:
    """Track all prunable weights after each optimizer step.

    The initial values only contribute their signs. The statistics are cut together with the channels of the model,
    by the record of its cuts; masked weights have no sign and no further flips.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._followed: dict[str, Followed] = {}
        #: kept original indices by (tensor, dimension), as of the last step
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._lost: list[str] = []

    @hookimpl(trylast=True)
    def run_started(self, trainer: Trainer) -> None:
        """Start tracking, after any pruning before training: reset all statistics and read the present signs."""
        self.steps, self._lost = 0, []
        self._kept = dict(lineage_of(trainer.model).kept)
        self._followed = {}
        for name, weight in prunable_weights(trainer.model).items():
            value = weight.detach()
            zero = torch.zeros_like(value, dtype=torch.float32)
            flips = torch.zeros_like(value, dtype=torch.int32)
            self._followed[name] = Followed(flips, value.sign().to(torch.int8), zero, zero.clone())

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer) -> None:
        """Update the statistics after each optimizer step."""
        self.steps += 1
        weights = prunable_weights(trainer.model)
        for name, stats in list(self._followed.items()):
            weight = weights.get(name)
            if weight is None or weight.shape != stats.mean.shape:  # the trainer replaced the layer
                self._lost.append(name)
                del self._followed[name]
                continue
            value = weight.detach().float()
            sign = value.sign().to(torch.int8)
            stats.flips += sign * stats.sign < 0
            stats.sign = torch.where(sign == 0, stats.sign, sign)
            change = value - stats.mean
            stats.mean += change / self.steps
            stats.squares.addcmul_(change, value - stats.mean)

    @hookimpl
    def pruned(self, trainer: Trainer) -> None:
        """Cut the statistics as the model was cut since the last step."""
        lineage = lineage_of(trainer.model)
        for (name, dim), now in lineage.kept.items():
            stats = self._followed.get(name)
            if stats is None:
                continue
            before = self._kept.get((name, dim), torch.arange(lineage.dense[name][dim]))
            if len(before) != len(now):
                stats.cut(dim, torch.isin(before, now).nonzero().flatten())
        self._kept = dict(lineage.kept)

    @hookimpl(trylast=True)
    def rewound(self, trainer: Trainer) -> None:
        """Update the signs to the rewound weights without counting flips; the statistics are kept."""
        for name, weight in prunable_weights(trainer.model).items():
            if name in self._followed:
                self._followed[name].sign = weight.detach().sign().to(torch.int8)

    def tensors(self) -> dict[str, Tensor]:
        """Return NAME.flips (int32), NAME.mean and NAME.variance (float32, over the steps) of each weight."""
        found: dict[str, Tensor] = {}
        for name, stats in self._followed.items():
            variance = stats.squares / max(1, self.steps)
            found |= {f"{name}.flips": stats.flips, f"{name}.mean": stats.mean, f"{name}.variance": variance}
        return {name: tensor.contiguous().cpu() for name, tensor in found.items()}

    def summary(self) -> dict[str, Any]:
        """Return the share of flipped weights, the mean flips and the deviation, in total and per layer.

        `lost` lists the weights that were replaced during training, if there are any.
        """
        layers = {name: self._facts([stats]) for name, stats in self._followed.items()}
        lost = {"lost": list(self._lost)} if self._lost else {}
        return {"steps": self.steps, **self._facts(list(self._followed.values())), "layers": layers, **lost}

    def _facts(self, some: list[Followed]) -> dict[str, float]:
        """flipped: share of weights with a flip; flips: mean per weight; deviation: root of the mean variance."""
        count = max(1, sum(stats.flips.numel() for stats in some))
        flipped = sum(int((stats.flips > 0).sum()) for stats in some)
        flips = sum(int(stats.flips.sum()) for stats in some)
        squares = sum(float(stats.squares.sum(dtype=torch.float64)) for stats in some)
        deviation = (squares / count / max(1, self.steps)) ** 0.5
        return {"flipped": flipped / count, "flips": flips / count, "deviation": deviation}

    def save(self, file: Path) -> None:
        """Write `tensors()` atomically into one safetensors file."""
        with replacing(file) as temporary:
            save_file(self.tensors(), temporary, metadata={"steps": str(self.steps)})
