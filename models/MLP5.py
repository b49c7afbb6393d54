from torch import nn

from secateur.utils.layers import DROPOUT, Network, dense_block, linear, require


class MLP5(Network):
    """Multilayer perceptron with batch norm: 5 dense layers.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Side of the images in pixels.
        hidden_dim: Width of the 4 hidden layers.
    """

    def __init__(
        self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, hidden_dim: int = 512
    ) -> None:
        require(type(self), hidden_dim=hidden_dim)
        self.hidden_dim = hidden_dim  # for `layers`, which the constructor of Network calls
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        widths = [in_channels * image_size**2, *[self.hidden_dim] * 4]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [*dense_block(inputs, outputs), nn.Dropout(DROPOUT)]
        return nn.Sequential(*layers), linear(self.hidden_dim, num_classes)
