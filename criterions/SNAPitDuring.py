from secateur import During
from secateur.criterions.SNAP import SNAP


class SNAPitDuring(SNAP):
    """SNAP in several steps during training, at the ends of epochs (`--prune_delay`, `--prune_freq`).

    Verdenius, Stol and Forré, 2020, arXiv:2006.00896.
    """

    schedule = During()
