"""Averages of the scores of training batches: over the last ones before a moment, or over the steps of a run."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.framework.pruning.channels.slicing import shrink
from secateur.framework.training.events import PruneEvent
from secateur.utils.errors import RunError, UsageError
from secateur.utils.limits import check_wholes

#: lower bound of a layer's norm
TINY = 1e-8


@dataclass(frozen=True)
class Tracking:
    """Options of the running average of scores.

    Attributes:
        batches: Number of training batches before a pruning step that are averaged, at least 1.
        alpha: Weight of the newest batch, in (0, 1].
    """

    batches: int = 20
    alpha: float = 0.8

    def __post_init__(self) -> None:
        check_wholes(self, batches=1)
        if not 0 < self.alpha <= 1:
            raise UsageError(f"Tracking: alpha must be in (0, 1], got {self.alpha}", argument="alpha")


class RunningScores:
    """Exponential moving average s := alpha * new + (1 - alpha) * s from s = 0, divided by 1 - (1 - alpha)^t.

    The division corrects the bias towards zero, so that the weights of the t batches sum to 1. Following Lubana
    and Dick, 2020, arXiv:2009.11839, who do not correct s.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._value: dict[str, Tensor] = {}
        #: 1 - (1 - alpha)^t
        self._weight = 0.0

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Add the scores of a batch."""
        self._weight = self.alpha + (1 - self.alpha) * self._weight
        self._value = _blended(self._value, scores, self.alpha / self._weight)

    def value(self) -> dict[str, Tensor]:
        """Return the average; raise RunError if no batch was added."""
        if self._weight == 0:
            raise RunError(
                "no batch was scored before this pruning step: the trainer must set `batch` in each step"
            )
        return self._value


class Averages:
    """Mean scores of the batches since the last step, averaged over steps and cut together with the network."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.value: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Add the scores of a batch."""
        self._sums = {name: score + self._sums[name] if self._sums else score for name, score in scores.items()}
        self._count += 1

    def step(self, keep_adding: bool = False) -> None:
        """Complete a step. With `keep_adding` the mean includes all batches so far and the following ones."""
        mean = {name: total / self._count for name, total in self._sums.items()}
        if keep_adding:
            self.value = mean
        else:
            self.value = _blended(self.value, mean, 1 - self.momentum)
            self._sums, self._count = {}, 0

    def shrink(self, event: PruneEvent, left: Collection[str]) -> None:
        """Remove the scores of cut channels, of cut parts of weights, and of names that are not in `left`.

        Scores of masked weights are kept, but not used again.
        """
        self.value = {name: score for name, score in self.value.items() if name in left}
        for name, score in self.value.items():
            if name in event.kept_indices:
                self.value[name] = shrink(score, event.kept_indices[name])
            elif score.dim() == 1 and name in event.keep:
                self.value[name] = score[event.keep[name].to(score.device)]


def _blended(old: Mapping[str, Tensor], new: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return share * new + (1 - share) * old; `new` if there is no old one or its share is 1."""
    if not old or share == 1:  # 0 * inf would be NaN
        return dict(new)
    return {name: share * score + (1 - share) * old[name] for name, score in new.items()}


def normed(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide each layer's scores by their L2 norm, which excludes infinite scores."""
    norms = {name: score.where(score != torch.inf, 0).norm() for name, score in scores.items()}
    return {name: score / (norms[name] + TINY) for name, score in scores.items()}
