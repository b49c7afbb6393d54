import torch
from torch import Tensor, nn

from secateur.framework.pruning.gated_layers.hard_concrete import l0_layers
from secateur.losses.CrossEntropy import CrossEntropy


class L0CrossEntropy(CrossEntropy):
    """Cross-entropy with the expected number of open gates as penalty: -(1/N) * sum of R over the gated layers.

    R, lambda (`--l0_reg`), rho (`--l2_reg` times N) and N (training samples) are attributes of the layers, see
    framework/pruning/gated_layers/hard_concrete.py. The l1 and lp penalties include all parameters except the
    gates. Without gated layers the loss equals CrossEntropy. Louizos, Welling and Kingma, 2018, arXiv:1712.01312.
    """

    def penalty(self, model: nn.Module) -> Tensor:
        """Return the cost of the expected open gates, plus the l1 and lp terms; finite everywhere."""
        total = super().penalty(model)
        costs = [layer.penalty() for layer in l0_layers(model).values()]
        return total + torch.stack(costs).sum() if costs else total

    def penalised(self, model: nn.Module) -> list[nn.Parameter]:
        """Return all parameters except the log_alphas."""
        gates = {id(layer.log_alpha) for layer in l0_layers(model).values()}
        return [parameter for parameter in model.parameters() if id(parameter) not in gates]
