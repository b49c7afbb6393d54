from secateur import After
from secateur.criterions.StructuredRandom import StructuredRandom


class RandomChannel(StructuredRandom):
    """Random channels over the whole network, on a trained network: StructuredRandom with global ranking.

    The scores are drawn once per pruning step from the run's seed; averaged over batches they would become equal.
    Method 1 of Molchanov, Mallya, Tyree, Frosio and Kautz, 2019, arXiv:1906.10771.
    """

    scope = "global"
    schedule = After()
    paper = "arXiv:1906.10771"
