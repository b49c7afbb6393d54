from secateur.utils.layers import Network, initialise, linear
from secateur.utils.residual import small_image_features


class ResNet56(Network):
    """ResNet-56 for small images: 57 convolutions in 27 residual blocks, 1 dense layer.

    Based on arXiv:1512.03385, with 1x1 convolutions where the shape changes.
    """

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features, width = small_image_features(in_channels, (9, 9, 9), 16)
        self.classifier = linear(width, num_classes)
        initialise(self)
