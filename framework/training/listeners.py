"""Listeners: weight decay of filters, the learning rate while pruning, accuracies of epochs, tracked weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.framework.network.layers import output_dim, prunable_weights
from secateur.framework.network.lineage import lineage_of
from secateur.framework.pruning.selection.input_features import readers_of_weights
from secateur.framework.training.hooks import hookimpl
from secateur.utils.files.atomic import replacing
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer

#: smallest norm to divide by
LEAST_NORM = 1e-30
#: phase of a run -> its name in the statistics
NAMES = {"warmup": "warmup", "pruning": "pruning_and_training", "final": "final_training"}


class GroupDecay:
    """Apply the proximal step of a group lasso after each optimizer step: w_o := w_o * max(0, 1 - length / |w_o|).

    The L2 norm of each filter w_o of each convolution decreases by `length` (`--group_wd_coeff`), down to 0, which
    is independent of the learning rate; biases and norm layers are not changed.

    Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    def __init__(self, length: float) -> None:
        self.length = length

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer) -> None:
        """Shrink the filters before any other listener reads the new weights."""
        module: Any
        for module in readers_of_weights(trainer.model).values():
            if not isinstance(module, nn.Linear):
                weight = module.weight.detach()
                others = [dim for dim in range(weight.dim()) if dim != output_dim(module)]
                norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
                weight.mul_((1 - self.length / norms.clamp(min=LEAST_NORM)).clamp(min=0))


class PruningRate:
    """Use the learning rate `rate` for all steps of the phase "pruning", in place of the scheduled one.

    The scheduler is stepped as usual meanwhile. Parameter groups with different rates keep their ratio to the rate
    of the first group.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._whole: list[float] = []

    @hookimpl
    def gradients_ready(self, trainer: Trainer) -> None:
        """Set the learning rate before the optimizer step."""
        if trainer.progress.phase != "pruning":
            return
        groups = unwrapped(trainer.optimizer).param_groups
        self._whole = [group["lr"] for group in groups]
        for group, rate in zip(groups, self._whole, strict=True):
            group["lr"] = self.rate * (rate / self._whole[0] if self._whole[0] else 1.0)

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer) -> None:
        """Restore the scheduled learning rate after the optimizer step."""
        if self._whole:
            groups = unwrapped(trainer.optimizer).param_groups
            for group, rate in zip(groups, self._whole, strict=True):
                group["lr"] = rate
            self._whole = []


class Accuracies:
    """Accuracies in percent of each epoch, before any pruning at its end (`--track_stats`).

    train: running accuracy during training. test: accuracy on the test set, which no decision depends on.
    """

    def __init__(self) -> None:
        #: phase -> "train" or "test" -> one number per epoch
        self.statistics: dict[str, dict[str, list[float]]] = {
            name: {"train": [], "test": []} for name in NAMES.values()
        }

    @hookimpl
    def epoch_ended(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Test the network at the end of the epoch."""
        shown = trainer.confusion  # other listeners read the confusion matrix of the validation images
        test = trainer.evaluate(trainer.loaders.test)
        trainer.confusion = shown
        accuracies = self.statistics[NAMES[trainer.progress.phase]]
        accuracies["train"].append(100 * metrics["acc/train"])
        accuracies["test"].append(100 * test["acc"])


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
        for name, dim in lineage.kept:
            stats, left = self._followed.get(name), lineage.left_since(self._kept, name, dim)
            if stats is not None and left is not None and len(left) < stats.sign.shape[dim]:
                index = left.to(stats.sign.device)
                self._followed[name] = Followed(*(of.index_select(dim, index) for of in vars(stats).values()))
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
