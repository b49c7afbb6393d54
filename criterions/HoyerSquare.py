from secateur import After, UsageError
from secateur.criterions.Magnitude import Magnitude


class HoyerSquare(Magnitude):
    """|w| of each weight with a fixed `threshold`, once, after training with the loss of the same name.

    Weights with |w| at or below the threshold are pruned. `--pruning_limit` has no effect, except that 0 prunes
    nothing. Yang, Wen and Li, 2019, arXiv:1908.09979.
    """

    schedule = After()
    paper = "arXiv:1908.09979"

    def __init__(self, *, threshold: float = 1e-3) -> None:
        if not threshold >= 0:
            raise UsageError(f"HoyerSquare: threshold must be at least 0, got {threshold}")
        super().__init__(threshold=threshold)
