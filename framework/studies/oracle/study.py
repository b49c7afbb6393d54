"""Measure the effect of removing each unit, and correlate it with the scores of criterions."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.network.preserve import scoring
from secateur.framework.pruning.channels.groups import ChannelGroup, Groups, free_groups
from secateur.framework.pruning.scoring.ablation.loss_change import loss_changes
from secateur.framework.pruning.scoring.contract import held_to_contract
from secateur.framework.pruning.scoring.criterion import Batch, Criterion, LossFunction, check_scores
from secateur.framework.studies.oracle.correlation import correlation, mean

Track = Callable[[Sequence[Batch]], Iterable[Batch]]
#: references that scores are compared with; the first one is used in the table and the figures
REFERENCES = {
    "squared": "(L without the unit - L)^2 of each batch, averaged, as in the criterion Oracle",
    "total": "(L without the unit - L)^2, L the mean loss over all images",
    "signed": "L without the unit - L, L the mean loss over all images",
}


@dataclass
class Oracle:
    """Changes of the loss when a unit is removed.

    Attributes:
        samples: Number of samples.
        loss: Mean loss of the whole network.
        changes: For each of REFERENCES, by group, float64 of shape `(channels,)` on the CPU. Batches have equal
            weights in `squared`: the importance of arXiv:1906.10771, averaged in the same way as the estimates of
            the criterions. For a single batch it is equal to `total`.
        seconds: Duration of the measurement.
    """

    samples: int
    loss: float
    changes: dict[str, dict[str, Tensor]]
    seconds: float


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
    references = {
        "squared": {name: change / len(batches) for name, change in squares.items()},
        "total": {name: (change / samples).square() for name, change in signed.items()},
        "signed": {name: change / samples for name, change in signed.items()},
    }
    return Oracle(samples, total / samples, references, time.perf_counter() - start)


@dataclass
class Judged:
    """Scores of one criterion, and their correlations with the changes of the loss.

    Attributes:
        scores: By group, `(channels,)`.
        seconds: Duration of scoring.
        correlation: For each of REFERENCES: `all`, over the raw scores of all units, as in a global ranking;
            `layers`, within each group; and `layer_mean`, the mean over the groups in which it is defined.
    """

    scores: dict[str, Tensor]
    seconds: float
    correlation: dict[str, dict[str, Any]]


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
    seconds, together = time.perf_counter() - start, {}
    for reference, wanted in oracle.changes.items():
        layers = {name: correlation(scores[name], change) for name, change in wanted.items()}
        overall = correlation(torch.cat([scores[name] for name in wanted]), torch.cat(list(wanted.values())))
        together[reference] = {"all": overall, "layer_mean": mean(list(layers.values())), "layers": layers}
    return Judged(scores, seconds, together)


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
        return sum(len(change) for change in self.oracle.changes["signed"].values())

    def ranked(self) -> list[str]:
        """Return the criterions by Pearson's r over all units, best first; undefined ones last."""

        def place(name: str) -> tuple[bool, float]:
            value = self.judged[name].correlation["squared"]["all"]["pearson"]
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
                    "units": len(signed),
                    "channels": self.groups[name].origin.tolist(),
                    **{reference: changes[name].tolist() for reference, changes in oracle.changes.items()},
                }
                for name, signed in oracle.changes["signed"].items()
            },
            "protected": {name: group.protected for name, group in self.groups.items() if group.protected},
            "criterions": {name: _numbers(self.judged[name]) for name in self.ranked()},
            "left_out": self.left_out,
        }


def _numbers(judged: Judged) -> dict[str, Any]:
    return {
        "seconds": judged.seconds,
        "units": sum(int(torch.isfinite(scores).sum()) for scores in judged.scores.values()),
        "correlation": judged.correlation,
        "scores": {name: scores.tolist() for name, scores in judged.scores.items()},
    }
