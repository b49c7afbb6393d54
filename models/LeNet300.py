from torch import nn

from secateur.utils.layers import Network, dense_block, initialise, linear


class LeNet300(Network):
    """LeNet-300-100 with batch norm: 3 dense layers."""

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(
            nn.Flatten(),
            *dense_block(in_channels * image_size**2, 300),
            *dense_block(300, 100),
        )
        self.classifier = linear(100, num_classes)
        initialise(self)
