"""The contract of a tester: a final shell that seeds, sets eval mode and restores, around one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from rich.table import Table
from torch import Tensor, nn

from secateur.framework.network.preserve import _evaluating, random_numbers_as_before
from secateur.framework.training.loss import Loss


def untracked(items: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """The items as they are, where no progress is shown."""
    return items


@dataclass(frozen=True)
class Network:
    """A trained network and the normalisation of its inputs: mean and std per channel, of pixels in [0, 1]."""

    name: str
    model: nn.Module
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)


@dataclass(frozen=True)
class TestContext:
    """What a run tells its tester; in a script of your own give what the tester needs.

    name: of the network. mean, std: the normalisation of the batches, per channel, of pixels in [0, 1].
    class_names: if the classes have names. plots: folder for pictures; None: draw none.
    compared: a second network for the same points. track: shows progress (items, title, total).
    seed: of `evaluate`, filled in by it.
    """

    __test__ = False  # no test case, whatever pytest thinks of the name

    name: str = "network"
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    class_names: Sequence[str] | None = None
    plots: Path | None = None
    compared: Network | None = None
    track: Callable[[Iterable[Any], str, int], Iterable[Any]] = field(default=untracked)
    seed: int = 0


class Tester(ABC):
    """Evaluates a trained network; a new one implements `run`."""

    #: whether `run` also tests `context.compared`; without it `--compare_with` is refused
    compares: ClassVar[bool] = False
    #: what the run tells; valid inside `run`
    context: TestContext = TestContext()

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)

    @final
    def evaluate(
        self,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        loss: Loss,
        *,
        seed: int = 0,
        context: TestContext | None = None,
    ) -> dict[str, Any]:
        """Results as JSON-able values. The model, its mode and the random state are afterwards as before."""
        self.context = replace(context or TestContext(), seed=seed)
        compared = self.context.compared
        networks = [model] if compared is None else [model, compared.model]
        with random_numbers_as_before(), _evaluating(networks):
            torch.manual_seed(seed)
            return self.run(model, batches, loss)

    @abstractmethod
    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """Evaluate; `model` is in eval mode and on the device of the batches."""

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """What a person is shown of the results: lines and tables."""
        return [f"  {key}: {value}" for key, value in results.items()]
