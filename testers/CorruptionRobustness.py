from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor, nn

from secateur import Loss, Tester, UsageError
from secateur.framework.studies.robustness.corruptions import CORRUPTIONS, STRENGTHS
from secateur.framework.studies.robustness.points import PixelModel, Points, collect, predictions
from secateur.framework.studies.robustness.results import wilson
from secateur.framework.training.tester import Network
from secateur.utils.loading.batches import seeded


class CorruptionRobustness(Tester):
    """Accuracy on images with noise, blur and reduced contrast, at five strengths each."""

    compares: ClassVar[bool] = True

    def __init__(
        self,
        *,
        noise: Sequence[float] = STRENGTHS["noise"],
        blur: Sequence[float] = STRENGTHS["blur"],
        contrast: Sequence[float] = STRENGTHS["contrast"],
        batch_size: int = 256,
    ) -> None:
        """Initialise the tester; raises UsageError for values out of range.

        Args:
            noise: standard deviations of the noise, above 0, ascending.
            blur: strengths of the blur, above 0, ascending; see framework/studies/robustness/corruptions.py.
            contrast: remaining contrast, in (0, 1], descending.
            batch_size: number of images per batch.
        """
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise UsageError(f"batch_size must be a whole number >= 1, got {batch_size!r}")
        super().__init__()
        self.batch_size = batch_size
        self.strengths = {"noise": _checked("noise", noise), "blur": _checked("blur", blur)}
        self.strengths["contrast"] = _checked("contrast", contrast)

    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """Evaluate the network, and `context.compared` if given, on the same corrupted images.

        Returns `clean_accuracy`, `corruptions` (strengths, accuracy, interval and mean of each) and
        `mean_accuracy` over all corruptions and strengths; `compared` holds the results of the second network.
        """
        context = self.context
        points = collect(batches, context.mean, context.std)
        networks = [Network(context.name, model, context.mean, context.std)]
        networks += [context.compared] if context.compared is not None else []
        tested = self._test([PixelModel(net.model, net.mean, net.std) for net in networks], points)
        results = [{"network": network.name, **values} for network, values in zip(networks, tested, strict=True)]
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
        """Count the correctly classified corrupted images of each network, on the same images."""
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
        """Return the first image at every strength, for the figure."""
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
        """Return a line and a table for each network."""
        shown: list[str | Table] = []
        for network in (results, results.get("compared")):
            if network is None:
                continue
            shown.append(
                f"{network['network']}: clean accuracy {network['clean_accuracy']:.4f}, "
                f"mean over corruptions {network['mean_accuracy']:.4f}, {network['samples']} images"
            )
            table = Table(title="accuracy by strength, mild to strong", title_justify="left")
            for title in ("", *map(str, range(1, 1 + max(map(len, self.strengths.values())))), "mean"):
                table.add_column(title, justify="right" if title else "left")
            for name, row in network["corruptions"].items():
                shares = [f"{share:.4f}" for share in row["accuracy"]]
                table.add_row(name, *shares, *[""] * (len(table.columns) - 2 - len(shares)), f"{row['mean']:.4f}")
            shown.append(table)
        return shown


def _checked(name: str, values: Any) -> tuple[float, ...]:
    numbers = values if isinstance(values, list | tuple) else [values]
    good = all(
        isinstance(number, int | float) and not isinstance(number, bool) and number > 0 for number in numbers
    )
    if not numbers or not good or (name == "contrast" and max(numbers) > 1):
        limits = "above 0 and at most 1" if name == "contrast" else "above 0"
        raise UsageError(f"{name} must be a list of numbers {limits}, got {values!r}")
    return tuple(float(number) for number in numbers)
