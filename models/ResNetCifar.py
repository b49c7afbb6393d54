from typing import Any

from torch import nn

from secateur import UsageError
from secateur.utils.layers import Network, initialise_fan_out
from secateur.utils.limits import check_options_of, check_switch
from secateur.utils.residual import EXPANSION, BasicBlock, Bottleneck, cifar_blocks, small_image_layers


class ResNetCifar(Network):
    """ResNet for CIFAR of any depth: a stem, 3 stages of residual blocks, 1 dense layer.

    Based on arXiv:1512.03385, with 1x1 convolutions where the shape changes.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.
        depth: Layers with weights: 6n + 2 with n basic blocks in each stage, 9n + 2 with n bottlenecks.
        block: "BasicBlock" (default) or "Bottleneck".
        legacy_depth_rule: n = (depth - 2) / 6 bottlenecks in each stage for a depth of 44 and above, basic blocks
            below. With this rule bearpaw's pytorch-classification measured its "ResNet-110", which has 164 layers.

    Raises:
        UsageError: If an option is not allowed.

    Example:
        >>> from secateur import build
        >>> model = build("models", "ResNetCifar", in_channels=3, depth=110)
        >>> sum(tensor.numel() for tensor in model.parameters())
        1730714
    """

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, depth: int = 20,
        block: str | None = None, legacy_depth_rule: bool = False,
    ) -> None:  # fmt: skip
        self.check_options(depth, block, legacy_depth_rule)
        # for `layers`, which the constructor of Network calls
        self.depth, self.block, self.legacy_depth_rule = depth, block, legacy_depth_rule
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    @classmethod
    def check_options(
        cls, depth: Any = 20, block: Any = None, legacy_depth_rule: Any = False, **options: Any
    ) -> None:
        """Raise UsageError for options that are not allowed; called before data are loaded."""
        name = cls.__name__
        check_options_of(name, {"legacy_depth_rule": check_switch}, legacy_depth_rule=legacy_depth_rule)
        if block is not None and legacy_depth_rule:
            raise UsageError(f"{name}: legacy_depth_rule chooses the block, leave block out", argument="block")
        cifar_blocks(name, depth, block, legacy_depth_rule)

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        count, bottleneck = cifar_blocks(type(self).__name__, self.depth, self.block, self.legacy_depth_rule)
        block, width = (Bottleneck, 16 * EXPANSION) if bottleneck else (BasicBlock, 16)
        return small_image_layers(in_channels, num_classes, (count,) * 3, width, block, stem=16)

    def initialise_weights(self) -> None:
        initialise_fan_out(self)
