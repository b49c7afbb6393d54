from __future__ import annotations

from typing import ClassVar

from secateur import After, Schedule
from secateur.criterions.StructuredRandom import StructuredRandom


class RandomChannel(StructuredRandom):
    """Channels at random over the whole network, on a trained network: StructuredRandom with global ranking.

    One draw a pruning step, from the run's seed: draws that are averaged over batches would all come out alike.
    Method 1 of Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    scope = "global"
    schedule: ClassVar[Schedule] = After()
    paper = "arXiv:1906.10771"
