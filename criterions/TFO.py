from torch import Tensor

from secateur import ChannelWeightCriterion, Data, During
from secateur.framework.pruning.scoring.gradients import check_flow_options


class TFO(ChannelWeightCriterion):
    """|sum w * g| over each channel's weights: the first-order Taylor term of the loss; during training.

    g and the options are those of LossBased. Lubana and Dick, 2020, arXiv:2009.11839, after Molchanov, Tyree,
    Karras, Aila and Kautz, 2016, arXiv:1611.06440.
    """

    schedule = During()
    data = Data("random", samples=2560)
    paper = "arXiv:2009.11839"
    recommended = {"T": 5.0, "keep_share": {"rounds": 0.05}}

    def __init__(self, *, temperature: float = 5.0, samples: int = 2560) -> None:
        check_flow_options(self.name, temperature, samples)
        super().__init__(temperature=temperature, samples=samples)
        self.data = Data("random", samples=samples)

    def formula(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return |sum w * g|."""
        return gradient.mul_(weight).sum(1).abs()
