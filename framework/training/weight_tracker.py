"""The listener that follows every prunable weight through training: sign flips, mean and variance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.framework.network.layers import prunable_weights
from secateur.framework.network.lineage import lineage_of
from secateur.framework.training.hooks import hookimpl
from secateur.utils.files.atomic import replacing

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer


@dataclass
class Followed:
    """What is known of one weight tensor; each is of its shape.

    flips: int32, how often a value had the other sign than the last one that was not zero. sign: int8, of that
    last one. mean and squares: float32, the running mean and sum of squared distances from it (Welford).
    """

    flips: Tensor
    sign: Tensor
    mean: Tensor
    squares: Tensor

    def cut(self, dim: int, index: Tensor) -> None:
        """Keep these positions along one dimension."""
        for name, tensor in vars(self).items():
            setattr(self, name, tensor.index_select(dim, index.to(tensor.device)))


class WeightTracker:
    """Looks at all prunable weights after each optimizer step.

    The value before the first step only gives the first sign. Channels cut in training are cut here too, by the
    record of the model's cuts; weights that a mask holds at zero have no sign and flip no more.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._followed: dict[str, Followed] = {}
        #: original indices, per (tensor, dimension), as of the last look
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._lost: list[str] = []

    @hookimpl(trylast=True)
    def run_started(self, trainer: Trainer) -> None:
        """Begin, once the network was pruned that is to be pruned before training."""
        self.start(trainer.model)

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer) -> None:
        """After each optimizer step."""
        self.look(trainer.model)

    @hookimpl
    def pruned(self, trainer: Trainer) -> None:
        """Channels may be gone."""
        self.follow_cuts(trainer.model)

    @hookimpl(trylast=True)
    def rewound(self, trainer: Trainer) -> None:
        """A jump back is no step of training: signs are taken anew, and what is known stays."""
        for name, weight in prunable_weights(trainer.model).items():
            if name in self._followed:
                self._followed[name].sign = weight.detach().sign().to(torch.int8)

    def start(self, model: nn.Module) -> None:
        """Forget everything, and take the signs of the weights as they are."""
        self.steps, self._lost = 0, []
        self._kept = dict(lineage_of(model).kept)
        self._followed = {}
        for name, weight in prunable_weights(model).items():
            value = weight.detach()
            zero = torch.zeros_like(value, dtype=torch.float32)
            flips = torch.zeros_like(value, dtype=torch.int32)
            self._followed[name] = Followed(flips, value.sign().to(torch.int8), zero, zero.clone())

    @torch.no_grad()
    def look(self, model: nn.Module) -> None:
        """Take the values as those of one more step."""
        self.steps += 1
        weights = prunable_weights(model)
        for name, one in list(self._followed.items()):
            weight = weights.get(name)
            if weight is None or weight.shape != one.mean.shape:  # a trainer has put another layer in its place
                self._lost.append(name)
                del self._followed[name]
                continue
            value = weight.detach().float()
            sign = value.sign().to(torch.int8)
            one.flips += sign * one.sign < 0
            one.sign = torch.where(sign == 0, one.sign, sign)
            change = value - one.mean
            one.mean += change / self.steps
            one.squares.addcmul_(change, value - one.mean)

    def follow_cuts(self, model: nn.Module) -> None:
        """Cut what is followed as the model was cut since the last look."""
        kept = lineage_of(model).kept
        for (name, dim), now in kept.items():
            one = self._followed.get(name)
            if one is None:
                continue
            before = self._kept.get((name, dim), torch.arange(lineage_of(model).dense[name][dim]))
            if len(before) != len(now):
                one.cut(dim, torch.isin(before, now).nonzero().flatten())
        self._kept = dict(kept)

    def tensors(self) -> dict[str, Tensor]:
        """NAME.flips (int32), NAME.mean and NAME.variance (float32, over the steps) of each weight."""
        found = {}
        for name, one in self._followed.items():
            found[f"{name}.flips"] = one.flips
            found[f"{name}.mean"] = one.mean
            found[f"{name}.variance"] = one.squares / max(1, self.steps)
        return {name: tensor.contiguous().cpu() for name, tensor in found.items()}

    def summary(self) -> dict[str, Any]:
        """For the report: of all weights present and per layer, the share that flipped, flips and deviation.

        `lost` names weights that were replaced by others in training, if there are any.
        """
        layers = {name: self._facts([one]) for name, one in self._followed.items()}
        lost = {"lost": list(self._lost)} if self._lost else {}
        return {"steps": self.steps, **self._facts(list(self._followed.values())), "layers": layers, **lost}

    def _facts(self, some: list[Followed]) -> dict[str, float]:
        """flipped: share of the weights with a flip; flips: mean number; deviation: root of the mean variance."""
        count = max(1, sum(one.flips.numel() for one in some))
        flipped = sum(int((one.flips > 0).sum()) for one in some)
        flips = sum(int(one.flips.sum()) for one in some)
        squares = sum(float(one.squares.sum(dtype=torch.float64)) for one in some)
        deviation = (squares / count / max(1, self.steps)) ** 0.5
        return {"flipped": flipped / count, "flips": flips / count, "deviation": deviation}

    def save(self, file: Path) -> None:
        """Write `tensors()` as one safetensors file, whole or not at all."""
        with replacing(file) as temporary:
            save_file(self.tensors(), temporary, metadata={"steps": str(self.steps)})
