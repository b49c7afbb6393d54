"""Measure the effect of removing each unit, and correlate it with the scores of criterions."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, free_groups
from secateur.framework.pruning.scoring.ablation.loss_change import loss_changes
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, check_scores
from secateur.framework.studies.oracle.correlation import Correlation, correlation, mean

Track = Callable[[Sequence[Batch]], Iterable[Batch]]
#: references that scores are compared with; the first one is used in the table and the figures
REFERENCES = {
    "squared": "(L without the unit - L)^2 of each batch, averaged, as in the criterion Oracle",
    "total": "(L without the unit - L)^2, L the mean loss over all images",
    "signed": "L without the unit - L, L the mean loss over all images",
}


@dataclass
class Oracle:
    """Changes of the loss when a unit is removed: per group, float64 of shape `(channels,)` on the CPU.

    Attributes:
        samples: Number of samples.
        loss: Mean loss of the whole network.
        signed: Mean loss without the unit, minus `loss`.
        squared: The squared change of each batch, averaged over batches with equal weights: the importance of
            arXiv:1906.10771, averaged in the same way as the estimates of the criterions.
        seconds: Duration of the measurement.
    """

    samples: int
    loss: float
    signed: dict[str, Tensor]
    squared: dict[str, Tensor]
    seconds: float = 0.0

    @property
    def total(self) -> dict[str, Tensor]:
        """The square of `signed`; equal to `squared` for a single batch."""
        return {name: change.square() for name, change in self.signed.items()}

    def reference(self, name: str) -> dict[str, Tensor]:
        """Return the values of one of REFERENCES."""
        values: dict[str, Tensor] = getattr(self, name)
        return values


def measure_oracle(
    model: nn.Module, batches: Sequence[Batch], loss: LossFunction, groups: Groups, track: Track = iter
) -> Oracle:
    """Remove each unit of the free groups in turn, in eval mode; exact up to rounding. The model is not changed.

    `loss` is a mean over its batch; in `signed`, batches are weighted by their sizes. `track` iterates over the
    batches and shows the progress.
    """
    free, start = free_groups(groups), time.perf_counter()
    samples, total = 0, 0.0
    signed = {name: torch.zeros(group.channels, dtype=torch.float64) for name, group in free.items()}
    squares = {name: change.clone() for name, change in signed.items()}
    with scoring(model):
        with torch.no_grad():
            total = sum(float(loss(model(inputs), targets)) * len(inputs) for inputs, targets in batches)
        for size, changes in loss_changes(model, track(batches), loss, free):
            samples += size
            for name, change in changes.items():
                exact = change.detach().cpu().double()
                signed[name] += size * exact
                squares[name] += exact.square()
    return Oracle(
        samples,
        total / samples,
        {name: total_change / samples for name, total_change in signed.items()},
        {name: total_change / len(batches) for name, total_change in squares.items()},
        time.perf_counter() - start,
    )


@dataclass
class Judged:
    """Scores of one criterion, `(channels,)` per group, and their correlations with each reference."""

    scores: dict[str, Tensor]
    seconds: float
    #: reference -> correlation over all units, with the raw scores, as in a global ranking
    overall: dict[str, Correlation] = field(default_factory=dict)
    #: reference -> group -> correlation within the group
    layers: dict[str, dict[str, Correlation]] = field(default_factory=dict)

    def layer_mean(self, reference: str) -> Correlation:
        """Average the correlations within groups, over those in which they are defined."""
        return mean(list(self.layers[reference].values()))


def judge(
    criterion: Criterion,
    model: nn.Module,
    batches: Sequence[Batch],
    loss: LossFunction,
    groups: Groups,
    oracle: Oracle,
) -> Judged:
    """Score with the batches of the oracle (or none, for a criterion without data) and compare with the oracle.

    Raises:
        UsageError: If the criterion cannot score the network.
    """
    start, free = time.perf_counter(), free_groups(groups)
    with held_to_contract(criterion, "score", model):
        raw = criterion.score(model, batches if criterion.data.kind != "none" else [], loss, free)
        scores = {name: score.cpu() for name, score in check_scores(raw, model, groups, criterion).items()}
    judged = Judged(scores, time.perf_counter() - start)
    for reference in REFERENCES:
        wanted = oracle.reference(reference)
        judged.layers[reference] = {name: correlation(scores[name], wanted[name]) for name in wanted}
        judged.overall[reference] = correlation(*(torch.cat([values[name] for name in wanted])
                                                  for values in (scores, wanted)))  # fmt: skip
    return judged


@dataclass
class Study:
    """Results of a study."""

    groups: Mapping[str, ChannelGroup]
    oracle: Oracle
    judged: dict[str, Judged]
    left_out: dict[str, str]

    @property
    def units(self) -> int:
        """Number of units that were removed, one at a time."""
        return sum(len(change) for change in self.oracle.signed.values())

    def ranked(self) -> list[str]:
        """Return the criterions by Pearson's r over all units, best first; undefined ones last."""

        def place(name: str) -> tuple[bool, float]:
            value = self.judged[name].overall["squared"]["pearson"]
            return value is None, -(value or 0.0)

        return sorted(self.judged, key=place)

    def results(self) -> dict[str, Any]:
        """Return all numbers as values of JSON."""
        oracle, seconds = self.oracle, sum(judged.seconds for judged in self.judged.values())
        return {
            "samples": oracle.samples,
            "loss": oracle.loss,
            "units": self.units,
            "seconds": {"oracle": oracle.seconds, "criterions": seconds},
            "references": REFERENCES,
            "layers": {
                name: {
                    "units": len(oracle.signed[name]),
                    "channels": self.groups[name].origin.tolist(),
                    **{reference: oracle.reference(reference)[name].tolist() for reference in REFERENCES},
                }
                for name in oracle.signed
            },
            "protected": {name: group.protected for name, group in self.groups.items() if group.protected},
            "criterions": {name: _numbers(self.judged[name]) for name in self.ranked()},
            "left_out": self.left_out,
        }


def _numbers(judged: Judged) -> dict[str, Any]:
    return {
        "seconds": judged.seconds,
        "units": sum(int(torch.isfinite(scores).sum()) for scores in judged.scores.values()),
        "correlation": {
            reference: {
                "all": judged.overall[reference],
                "layer_mean": judged.layer_mean(reference),
                "layers": judged.layers[reference],
            }
            for reference in REFERENCES
        },
        "scores": {name: scores.tolist() for name, scores in judged.scores.items()},
    }
