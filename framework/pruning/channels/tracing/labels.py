"""Labels: every position along every dimension of every parameter has one; what must go together is joined."""

from __future__ import annotations

import torch
from torch import Tensor

#: a position that no label stands for: it is there whatever is cut
FIXED = -1


class Labels:
    """Hands out labels, and remembers which must go together and which must stay, and why."""

    def __init__(self) -> None:
        self.count = 0
        self._joined: list[Tensor] = []
        #: labels, why, and the number of the operation that says so, if it is of no account where that is dead
        self._stay: list[tuple[Tensor, str, int | None]] = []
        self._reduced: list[tuple[Tensor, str, int | None]] = []

    def run(self, size: int) -> Tensor:
        """A run of new labels, int64 `(size,)`."""
        start, self.count = self.count, self.count + size
        return torch.arange(start, self.count)

    def join(self, one: Tensor, other: Tensor) -> None:
        """Labels at equal places, after broadcasting, go together."""
        self._joined.append(torch.stack([part.reshape(-1) for part in torch.broadcast_tensors(one, other)]))

    def stay(self, labels: Tensor, reason: str, step: int | None = None) -> None:
        """These are never cut, unless it is for an operation whose result nobody reads."""
        self._stay.append((labels[labels != FIXED], reason, step))

    def reduced(self, labels: Tensor, reason: str, step: int | None = None) -> None:
        """Something reduces over these, so that a cut is not what a mask is."""
        self._reduced.append((labels[labels != FIXED], reason, step))

    def forget(self) -> None:
        """Let go of all that was noted; labels stay counted."""
        for noted in (self._joined, self._stay, self._reduced):
            noted.clear()

    def components(self) -> Tensor:
        """For every label the least label it goes together with, int64 `(count,)`."""
        root = torch.arange(self.count)
        if not self._joined:
            return root
        one, other = torch.cat(self._joined, dim=1)
        real = (one != FIXED) & (other != FIXED) & (one != other)
        one, other = one[real], other[real]
        pairs = (one * self.count + other).unique()  # a number each: many times faster than unique columns
        one, other = pairs // self.count, pairs % self.count
        while True:  # each round, the least label on both sides of a pair spreads to both, and roots are followed
            low = torch.minimum(root[one], root[other])
            new = root.scatter_reduce(0, root[one], low, "amin").scatter_reduce(0, root[other], low, "amin")
            new = new[new]
            if torch.equal(new, root):
                return root
            root = new

    def reasons(self, root: Tensor, inexact: bool, live: set[int]) -> tuple[dict[int, str], set[int]]:
        """Component -> why it stays; and, with `inexact`, the components whose cut is not exact. `live` are the
        operations on which the outputs depend."""
        stay: dict[int, str] = {}
        loose: set[int] = set()
        for labels, reason, step in self._stay:
            if step is None or step in live:
                for component in root[labels].unique().tolist():
                    stay.setdefault(component, reason)
        for labels, reason, step in self._reduced:
            if step is not None and step not in live:
                continue
            for component in root[labels].unique().tolist():
                if inexact:
                    loose.add(component)
                else:
                    stay.setdefault(component, reason)
        return stay, loose
