"""The contract of a tester: `evaluate` seeds, sets eval mode, calls `run` and restores the state."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from rich.table import Table
from torch import Tensor, nn

from secateur.framework.network.preserve import evaluating, random_numbers_as_before
from secateur.framework.training.loss import Loss
from secateur.utils.progress import Track, no_bar


@dataclass(frozen=True)
class Network:
    """A trained network and the normalisation of its inputs.

    Attributes:
        name: name of the network in results and tables.
        model: the network.
        mean: mean per input channel that the batches were normalised with, of pixels in [0, 1].
        std: standard deviation per input channel that the batches were normalised with, of pixels in [0, 1].
    """

    name: str
    model: nn.Module
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)


@dataclass(frozen=True)
class TestContext:
    """Information about a run that is passed to its tester.

    Attributes:
        name: name of the network in results and tables.
        mean: mean per input channel that the batches were normalised with, of pixels in [0, 1].
        std: standard deviation per input channel that the batches were normalised with, of pixels in [0, 1].
        class_names: names of the classes. None: classes are shown by number.
        plots: folder to write figures to. None: draw no figures.
        compared: second network, evaluated on the same samples. None: evaluate one network.
        track: function of (items, title, total) that returns the items and shows a progress bar.
        seed: seed of the evaluation; set by `Tester.evaluate`.

    Example:
        >>> from secateur import TestContext
        >>> context = TestContext(name="pruned", mean=(0.2859,), std=(0.3534,), class_names=("cat", "dog"))
        >>> context.name, context.plots, context.seed
        ('pruned', None, 0)
    """

    __test__ = False  # pytest must not collect this class

    name: str = "network"
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    class_names: Sequence[str] | None = None
    plots: Path | None = None
    compared: Network | None = None
    track: Track = field(default=no_bar)
    seed: int = 0

    def networks(self, model: nn.Module) -> list[Network]:
        """Return the evaluated network, and the compared one if there is one."""
        compared = [] if self.compared is None else [self.compared]
        return [Network(self.name, model, self.mean, self.std), *compared]


class Tester(ABC):
    """Base class of the testers, which evaluate a trained network.

    A subclass implements `run`; users call `evaluate`.

    Args:
        options: options of the subclass, by keyword; each becomes an attribute of the instance.

    Attributes:
        compares: whether `run` also evaluates `context.compared`; if not, `--compare_with` is refused.
        attacks: whether `run` attacks the network; a literal, since it is read without importing the file.
        context: the `TestContext` of the evaluation; valid inside `run` and `shown`.

    Example:
        >>> import torch
        >>> from secateur import Tester, build
        >>> class Counter(Tester):
        ...     def run(self, model, batches, loss):
        ...         return {"samples": sum(len(inputs) for inputs, targets in batches)}
        >>> batches = [(torch.zeros(3, 2), torch.tensor([0, 1, 1]))]
        >>> Counter().evaluate(torch.nn.Linear(2, 2), batches, build("losses", "CrossEntropy"))
        {'samples': 3}
    """

    compares: ClassVar[bool] = False
    attacks: ClassVar[bool] = False
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
        """Evaluate the network; its modes and the global random state are restored afterwards.

        Args:
            model: network to evaluate.
            batches: pairs (inputs, targets) on the device of the model.
            loss: loss of the evaluation.
            seed: seed of the random numbers, such as those of random attacks.
            context: information about the run. Default: `TestContext()`.

        Returns:
            Results by name, of types that JSON can represent.
        """
        self.context = replace(context or TestContext(), seed=seed)
        networks = [network.model for network in self.context.networks(model)]
        with random_numbers_as_before(), evaluating(*networks):
            torch.manual_seed(seed)
            return self.run(model, batches, loss)

    @abstractmethod
    def run(self, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> dict[str, Any]:
        """Evaluate the network; implemented by subclasses.

        Args:
            model: network in eval mode, on the device of the batches.
            batches: pairs (inputs, targets).
            loss: loss of the evaluation.

        Returns:
            Results by name, of types that JSON can represent.
        """

    def shown(self, results: dict[str, Any]) -> list[str | Table]:
        """Return the lines and tables that the console shows.

        Args:
            results: return value of `run`.

        Returns:
            Strings and `rich` tables; one line for each result unless a subclass overrides this method.
        """
        return [f"  {key}: {value}" for key, value in results.items()]
