from torch import nn

from secateur.utils.layers import Network, dense_block, dropout, initialise, linear, require


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
        super().__init__(in_channels, num_classes, image_size)
        require(self, "hidden_dim", hidden_dim)
        widths = [in_channels * image_size**2, hidden_dim, hidden_dim, hidden_dim, hidden_dim]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [*dense_block(inputs, outputs), dropout()]
        self.features = nn.Sequential(*layers)
        self.classifier = linear(hidden_dim, num_classes)
        initialise(self)
