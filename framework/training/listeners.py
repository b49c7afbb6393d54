"""Small listeners: weight decay of filters, the learning rate while pruning, accuracies of every epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from secateur.framework.network.layers import output_dim
from secateur.framework.pruning.selection.input_features import readers_of_weights
from secateur.framework.training.hooks import hookimpl
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from secateur.framework.training.trainer import Trainer

#: smallest norm to divide by
LEAST_NORM = 1e-30
#: phase of a run -> its name in the statistics
NAMES = {"warmup": "warmup", "pruning": "pruning_and_training", "final": "final_training"}


@torch.no_grad()
def shrink_filters(model: nn.Module, length: float) -> None:
    """Apply the proximal step of a group lasso: w_o := w_o * max(0, 1 - length / |w_o|) for every filter w_o.

    The L2 norm of each filter of each convolution decreases by `length`, down to 0; biases and norm layers are not
    changed.
    """
    module: Any
    for module in readers_of_weights(model).values():
        if not isinstance(module, nn.Linear):
            others = [dim for dim in range(module.weight.dim()) if dim != output_dim(module)]
            norms = torch.linalg.vector_norm(module.weight, dim=others, keepdim=True)
            module.weight.mul_((1 - length / norms.clamp(min=LEAST_NORM)).clamp(min=0))


class GroupDecay:
    """Shrink the filters after each optimizer step by a constant that is independent of the learning rate.

    The constant is `--group_wd_coeff`.

    Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    def __init__(self, length: float) -> None:
        self.length = length

    @hookimpl(tryfirst=True)
    def batch_ended(self, trainer: Trainer) -> None:
        """Shrink the filters before any other listener reads the new weights."""
        shrink_filters(trainer.model, self.length)


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
