from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from rich.table import Column, Table
from torch import Tensor, nn

from secateur import Loss, Tester, UsageError
from secateur.framework.studies.robustness.assess import networks_of, wilson
from secateur.framework.studies.robustness.corruptions import CORRUPTIONS, STRENGTHS
from secateur.framework.studies.robustness.points import PixelModel, Points, collect, predictions
from secateur.framework.training.tester import Network
from secateur.utils.limits import number, whole
from secateur.utils.loading.batches import seeded


class CorruptionRobustness(Tester):
    """Accuracy on images with noise, blur and reduced contrast, at five strengths each."""

    compares: ClassVar[bool] = True
    batch_size: int

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
        whole(1)("batch_size", batch_size)
        super().__init__(batch_size=batch_size)
        given = {"noise": noise, "blur": blur, "contrast": contrast}
        self.strengths = {name: _checked(name, values) for name, values in given.items()}

    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """Evaluate the network, and `context.compared` if given, on the same corrupted images.

        Returns `clean_accuracy`, `corruptions` (strengths, accuracy, interval and mean of each) and
        `mean_accuracy` over all corruptions and strengths; `compared` holds the results of the second network.
        """
        context = self.context
        points = collect(batches, context.mean, context.std)
        results = [
            {"network": network.name, **self._tested(network, points)} for network in context.networks(model)
        ]
        if len(results) > 1:
            results[0]["compared"] = results[1]
        if context.plots is not None:
            from secateur.framework.studies.robustness.pictures import draw_corruptions

            first = points.pixels[:1]
            spoiled = {
                name: [next(self._chunks(first, name, level))[0].cpu() for level in range(len(strengths))]
                for name, strengths in self.strengths.items()
            }
            draw_corruptions(context.plots / "corruptions.png", results[0], spoiled)
        return results[0]

    def _tested(self, network: Network, points: Points) -> dict[str, Any]:
        """Return the results of one network; every network is given the same corrupted images."""
        model = PixelModel(network.model, network.mean, network.std)
        targets = points.targets.split(self.batch_size)
        clean = int((predictions(model, points.pixels, self.batch_size) == points.targets).sum())
        stages = [(name, level) for name in CORRUPTIONS for level in range(len(self.strengths[name]))]
        hits: dict[str, list[int]] = {name: [] for name in CORRUPTIONS}
        for name, level in self.context.track(stages, f"corruptions of {network.name}", len(stages)):
            chunks = zip(self._chunks(points.pixels, name, level), targets, strict=True)
            right = sum((predictions(model, chunk, len(chunk)) == labels).sum() for chunk, labels in chunks)
            hits[name].append(int(right))
        corruptions = {}
        for name, counts in hits.items():
            shares = [count / len(points) for count in counts]
            corruptions[name] = {
                "strengths": list(self.strengths[name]),
                "accuracy": shares,
                "interval": [wilson(count, len(points)) for count in counts],
                "mean": sum(shares) / len(shares),
            }
        every = [count / len(points) for counts in hits.values() for count in counts]
        return {
            "samples": len(points),
            "clean_accuracy": clean / len(points),
            "clean_interval": wilson(clean, len(points)),
            "mean_accuracy": sum(every) / len(every),
            "corruptions": corruptions,
        }

    def _chunks(self, pixels: Tensor, name: str, level: int) -> Iterator[Tensor]:
        generator = seeded("corruption", self.context.seed, name, level)
        for chunk in pixels.split(self.batch_size):
            yield CORRUPTIONS[name](chunk, self.strengths[name][level], generator)

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """Return a line and a table for each network."""
        shown: list[str | Table] = []
        for network in networks_of(results):
            shown.append(
                f"{network['network']}: clean accuracy {network['clean_accuracy']:.4f}, "
                f"mean over corruptions {network['mean_accuracy']:.4f}, {network['samples']} images"
            )
            most = max(map(len, self.strengths.values()))
            columns = [Column(name, justify="right") for name in (*map(str, range(1, 1 + most)), "mean")]
            table = Table("", *columns, title="accuracy by strength, mild to strong", title_justify="left")
            for name, row in network["corruptions"].items():
                shares = [f"{share:.4f}" for share in row["accuracy"]]
                table.add_row(name, *shares, *[""] * (most - len(shares)), f"{row['mean']:.4f}")
            shown.append(table)
        return shown


def _checked(name: str, values: Any) -> tuple[float, ...]:
    """Return the strengths as a tuple; raises UsageError unless they are numbers within their limits."""
    strengths = values if isinstance(values, list | tuple) else [values]
    if not strengths:
        raise UsageError(f"{name} must be a list of numbers, got {values!r}")
    allowed = number(above=0, most=1) if name == "contrast" else number(above=0)
    for strength in strengths:
        allowed(name, strength)
    return tuple(float(strength) for strength in strengths)
