from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor, nn

from secateur.framework.studies.robustness.corruptions import CORRUPTIONS, STRENGTHS
from secateur.framework.studies.robustness.points import PixelModel, Points, collect, predictions
from secateur.framework.studies.robustness.results import wilson
from secateur.framework.training.loss import Loss
from secateur.framework.training.tester import Network, Tester
from secateur.utils.errors import UsageError
from secateur.utils.loading.batches import seeded


class CorruptionRobustness(Tester):
    """Accuracy on images with noise, blur and less contrast, at five strengths each."""

    compares: ClassVar[bool] = True

    def __init__(
        self,
        *,
        noise: Sequence[float] = STRENGTHS["noise"],
        blur: Sequence[float] = STRENGTHS["blur"],
        contrast: Sequence[float] = STRENGTHS["contrast"],
        batch_size: int = 256,
    ) -> None:
        """noise, blur, contrast: strengths from mild to strong (framework/studies/robustness/corruptions.py)."""
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise UsageError(f"batch_size is a whole number from 1 on, got {batch_size!r}")
        super().__init__()
        self.batch_size = batch_size
        self.strengths = {"noise": _checked("noise", noise), "blur": _checked("blur", blur)}
        self.strengths["contrast"] = _checked("contrast", contrast)

    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """`clean_accuracy`, `corruptions` (strengths, accuracy, interval and mean of each) and `mean_accuracy`
        over all corruptions and strengths; the same of `context.compared`, on the same spoiled images."""
        context = self.context
        points = collect(batches, context.mean, context.std)
        networks = [Network(context.name, model, context.mean, context.std)]
        networks += [context.compared] if context.compared is not None else []
        found = self._test([PixelModel(one.model, one.mean, one.std) for one in networks], points)
        results = [{"network": network.name, **one} for network, one in zip(networks, found, strict=True)]
        if len(results) > 1:
            results[0]["compared"] = results[1]
        if context.plots is not None:
            from secateur.framework.studies.robustness.pictures import draw_corruptions

            spoiled = {name: self._spoiled(points.at(torch.arange(1)), name) for name in CORRUPTIONS}
            draw_corruptions(context.plots / "corruptions.png", results[0], spoiled)
        return results[0]

    def _test(self, models: Sequence[PixelModel], points: Points) -> list[dict[str, Any]]:
        clean = [
            int((predictions(model, points.pixels, self.batch_size) == points.targets).sum()) for model in models
        ]
        hits: list[dict[str, list[int]]] = [{} for _ in models]
        stages = [(name, number) for name in CORRUPTIONS for number in range(len(self.strengths[name]))]
        for name, number in self.context.track(stages, "corruptions", len(stages)):
            for rows, count in zip(hits, self._hits(models, points, name, number), strict=True):
                rows.setdefault(name, []).append(count)
        return [self._summary(*pair, len(points)) for pair in zip(clean, hits, strict=True)]

    def _hits(self, models: Sequence[PixelModel], points: Points, name: str, number: int) -> list[int]:
        """How many of the spoiled images each network gets right: the same images for all."""
        right = [torch.zeros((), dtype=torch.int64, device=points.pixels.device) for _ in models]
        for pixels, targets in zip(
            self._chunks(points.pixels, name, number), points.targets.split(self.batch_size), strict=True
        ):
            for at, model in enumerate(models):
                right[at] += (predictions(model, pixels, len(pixels)) == targets).sum()
        return [int(count) for count in right]

    def _chunks(self, pixels: Tensor, name: str, number: int) -> Iterator[Tensor]:
        generator = seeded("corruption", self.context.seed, name, number)
        for chunk in pixels.split(self.batch_size):
            yield CORRUPTIONS[name](chunk, self.strengths[name][number], generator)

    def _spoiled(self, points: Points, name: str) -> list[Tensor]:
        """The first image at every strength, for the picture."""
        numbers = range(len(self.strengths[name]))
        return [next(self._chunks(points.pixels, name, number))[0].cpu() for number in numbers]

    def _summary(self, clean: int, hits: dict[str, list[int]], total: int) -> dict[str, Any]:
        shares = {name: [count / total for count in counts] for name, counts in hits.items()}
        everything = [share for row in shares.values() for share in row]
        return {
            "samples": total,
            "clean_accuracy": clean / total,
            "clean_interval": list(wilson(clean, total)),
            "mean_accuracy": sum(everything) / len(everything),
            "corruptions": {
                name: {
                    "strengths": list(self.strengths[name]),
                    "accuracy": shares[name],
                    "interval": [list(wilson(count, total)) for count in counts],
                    "mean": sum(shares[name]) / len(shares[name]),
                }
                for name, counts in hits.items()
            },
        }

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """A table for each network."""
        found: list[str | Table] = []
        for one in (results, results.get("compared")):
            if one is None:
                continue
            found.append(
                f"{one['network']}: clean accuracy {one['clean_accuracy']:.4f}, "
                f"mean over corruptions {one['mean_accuracy']:.4f}, {one['samples']} images"
            )
            table = Table(title="accuracy by strength, mild to strong", title_justify="left")
            for title in ("", *map(str, range(1, 1 + max(map(len, self.strengths.values())))), "mean"):
                table.add_column(title, justify="right" if title else "left")
            for name, row in one["corruptions"].items():
                shares = [f"{share:.4f}" for share in row["accuracy"]]
                table.add_row(name, *shares, *[""] * (len(table.columns) - 2 - len(shares)), f"{row['mean']:.4f}")
            found.append(table)
        return found


def _checked(name: str, values: Any) -> tuple[float, ...]:
    numbers = values if isinstance(values, list | tuple) else [values]
    good = all(isinstance(one, int | float) and not isinstance(one, bool) and one > 0 for one in numbers)
    if not numbers or not good or (name == "contrast" and max(numbers) > 1):
        limits = "above 0 and at most 1" if name == "contrast" else "above 0"
        raise UsageError(f"{name} is a list of strengths, numbers {limits}, got {values!r}")
    return tuple(float(one) for one in numbers)
