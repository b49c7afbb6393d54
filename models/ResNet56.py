from secateur.models.ResNetCifar import ResNetCifar
from secateur.utils.layers import Network


class ResNet56(ResNetCifar):
    """ResNet-56 for small images: 57 convolutions in 27 residual blocks, 1 dense layer.

    The network of ResNetCifar with a depth of 56, with the orthogonal initial weights of the other networks.
    """

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, image_size=image_size, depth=56)

    def initialise_weights(self) -> None:
        Network.initialise_weights(self)
