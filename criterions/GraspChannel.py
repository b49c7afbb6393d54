from collections.abc import Iterable

from torch import Tensor, nn

from secateur import Batch, Criterion, Data, During, Groups, LossFunction, Scores, with_groups
from secateur.framework.pruning.scoring.channel_sums import over_channels, producer_parameters
from secateur.framework.pruning.scoring.gradient_flow import flow_products
from secateur.framework.pruning.scoring.gradients import check_flow_options


class GraspChannel(Criterion):
    """Signed sum of w * (H g) over each channel's weights, its contribution to the gradient flow.

    g is the gradient of the mean loss of outputs / `grasp_temperature` with respect to all parameters over
    `samples` images, the same number of each class, and H its Hessian; eval mode; during training. The weights are
    the rows of all producers, without biases. Lubana and Dick, 2020, arXiv:2009.11839, after Wang, Zhang and
    Grosse, 2020, arXiv:2002.07376.
    """

    granularity = "channel"
    schedule = During()
    data = Data("balanced", samples=2560)
    paper = "arXiv:2009.11839"
    recommended = {"T": 5.0, "keep_share": {"rounds": 0.05}}

    def __init__(self, *, grasp_temperature: float = 200.0, samples: int = 2560) -> None:
        check_flow_options(self.name, grasp_temperature, samples, "grasp_temperature")
        super().__init__(samples=samples)
        self.grasp_temperature = grasp_temperature
        self.data = Data("balanced", samples=samples)

    def cost(self, samples: int) -> float:
        """Return the cost of one pass for g and one that is differentiated twice."""
        return 3 * samples

    def score(
        self, model: nn.Module, batches: Iterable[Batch], loss: LossFunction, groups: Groups | None = None
    ) -> Scores:
        """Return the formula of the sum of w * (H g) of every free channel, `(channels,)` per group."""
        free, batches = with_groups(model, batches, groups)
        extra = producer_parameters(model, free, biases=False)
        products = flow_products(model, batches, loss, extra, temperature=self.grasp_temperature, everything=True)
        return {name: self.formula(total).float() for name, total in over_channels(free, products).items()}

    def formula(self, flow: Tensor) -> Tensor:
        """Return the sum of w * (H g) of each channel."""
        return flow
