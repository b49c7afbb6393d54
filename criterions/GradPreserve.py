from torch import Tensor

from secateur.criterions.GraspChannel import GraspChannel


class GradPreserve(GraspChannel):
    """|sum w * (H g)| over each channel's weights, the effect on the norm of the gradients.

    Equals GraspChannel without the sign and with `grasp_temperature` 1; during training. Lubana and Dick, 2020,
    arXiv:2009.11839.
    """

    recommended = {"T": 5.0, "grasp_T": 1.0, "keep_share": {"rounds": 0.05}}

    def __init__(self, *, grasp_temperature: float = 1.0, samples: int = 2560) -> None:
        super().__init__(grasp_temperature=grasp_temperature, samples=samples)

    def formula(self, flow: Tensor) -> Tensor:
        """Return |sum w * (H g)|."""
        return flow.abs()
