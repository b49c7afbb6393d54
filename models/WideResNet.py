import functools
from typing import Any

from torch import nn

from secateur.utils.layers import Network, initialise_fan_out
from secateur.utils.limits import blocks_in, check_options_of, number, whole
from secateur.utils.residual import PreActBlock, small_image_layers

LIMITS = {"widen_factor": whole(1), "dropout": number(least=0, below=1)}


class WideResNet(Network):
    """Wide ResNet for CIFAR: a stem, 3 stages of wide residual blocks with norms first, 1 dense layer.

    Based on arXiv:1605.07146. WRN-28-10 is `depth=28, widen_factor=10`.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.
        depth: Layers with weights: 6n + 4 with n blocks in each stage.
        widen_factor: The stages have 16, 32 and 64 times as many channels.
        dropout: Share that is set to 0 between the convolutions of a block in training; the paper has 0.3.

    Raises:
        UsageError: If an option is not allowed.

    Example:
        >>> from secateur import build
        >>> model = build("models", "WideResNet", in_channels=3, depth=28, widen_factor=10)
        >>> sum(tensor.numel() for tensor in model.parameters())
        36479194
    """

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, depth: int = 16,
        widen_factor: int = 2, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.check_options(depth, widen_factor, dropout)
        # for `layers`, which the constructor of Network calls
        self.depth, self.widen_factor, self.dropout = depth, widen_factor, dropout
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    @staticmethod
    def check_options(depth: Any = 16, widen_factor: Any = 2, dropout: Any = 0.0, **options: Any) -> None:
        """Raise UsageError for options that are not allowed; called before data are loaded."""
        blocks_in("WideResNet", depth, 6, 4)
        check_options_of("WideResNet", LIMITS, widen_factor=widen_factor, dropout=dropout)

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        count = blocks_in("WideResNet", self.depth, 6, 4)
        return small_image_layers(
            in_channels, num_classes, (count,) * 3, 16 * self.widen_factor,
            functools.partial(PreActBlock, dropout=self.dropout), stem=16, stem_norm=False, last_norm=True,
        )  # fmt: skip

    def initialise_weights(self) -> None:
        initialise_fan_out(self)
