"""Labels of positions along the dimensions of parameters, and the union-find of labels removed together."""

from typing import NamedTuple

import torch
from torch import Tensor

#: the label of a position that belongs to no channel and is always kept
FIXED = -1


class Run(NamedTuple):
    """The labels of one dimension of one tensor: `start`, `start + 1`, ..."""

    tensor: str
    dim: int
    start: int
    size: int


class Labels:
    """Allocates labels, and records which are removed together and which are never removed, with the reason."""

    def __init__(self) -> None:
        self.count = 0
        self.runs: list[Run] = []
        self._joined: list[Tensor] = []
        #: labels, reason, the number of the operation that is the reason (None if it holds even for unused
        #: results), and whether it is a reduction, after which a cut differs from a mask
        self._reasons: list[tuple[Tensor, str, int | None, bool]] = []

    def run(self, tensor: str, dim: int, size: int) -> Tensor:
        """Return the new labels of one dimension of a tensor, int64 `(size,)`."""
        run = Run(tensor, dim, self.count, size)
        self.runs.append(run)
        self.count += size
        return torch.arange(run.start, self.count)

    def runs_of(self, labels: Tensor) -> Tensor:
        """Return the number of the run that each label belongs to; of FIXED it is -1."""
        return torch.searchsorted(torch.tensor([run.start for run in self.runs]), labels, right=True) - 1

    def starts(self) -> dict[tuple[str, int], int]:
        """Return the first label along each (tensor, dimension)."""
        return {(run.tensor, run.dim): run.start for run in self.runs}

    def join(self, one: Tensor, other: Tensor) -> None:
        """Join labels at equal positions, after broadcasting: they are removed together."""
        self._joined.append(torch.stack([part.reshape(-1) for part in torch.broadcast_tensors(one, other)]))

    def tie(self, labels: Tensor, size: int) -> None:
        """Join the labels of equal pieces of an axis, each of which then loses the same positions."""
        pieces = labels.reshape(-1, size)
        self.join(pieces, pieces[:1])

    def forget(self) -> None:
        """Release the records of labels; the runs are kept."""
        self._joined.clear()
        self._reasons.clear()

    def stay(self, labels: Tensor, reason: str, step: int | None = None, reduces: bool = False) -> None:
        """Protect these labels, unless the outputs do not depend on operation number `step`.

        `reduces` is whether the operation reduces over them: a cut then differs from a mask.
        """
        self._reasons.append((labels[labels != FIXED], reason, step, reduces))

    def components(self) -> Tensor:
        """Return the least label of the component of every label, int64 `(count,)`, and forget what was joined."""
        root = torch.arange(self.count)
        if not self._joined:
            return root
        one, other = torch.cat(self._joined, dim=1)
        self._joined.clear()  # it takes several times the memory of a small network
        real = (one != FIXED) & (other != FIXED) & (one != other)
        one, other = one[real], other[real]
        pairs = (one * self.count + other).unique()  # as one number per pair: much faster than unique columns
        one, other = pairs // self.count, pairs % self.count
        while True:  # each round, the least label on both sides of a pair spreads to both, and roots are followed
            low = torch.minimum(root[one], root[other])
            new = root.scatter_reduce(0, root[one], low, "amin").scatter_reduce(0, root[other], low, "amin")
            new = new[new]
            if torch.equal(new, root):
                return root
            root = new

    def reasons(self, root: Tensor, inexact: bool, live: set[int]) -> tuple[dict[int, str], set[int]]:
        """Return component -> why it is protected, and, with `inexact`, the components whose cut is not exact.

        `live` has the numbers of the operations on which the outputs depend.
        """
        stay: dict[int, str] = {}
        loose: set[int] = set()
        for labels, reason, step, reduces in sorted(self._reasons, key=lambda entry: entry[3]):
            if step is not None and step not in live:
                continue
            components = root[labels].unique().tolist()
            if reduces and inexact:
                loose.update(components)
            else:
                for component in components:
                    stay.setdefault(component, reason)
        return stay, loose
