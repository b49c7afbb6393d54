from torch import nn

from secateur.utils.layers import Network
from secateur.utils.residual import small_image_layers


class ResNet56(Network):
    """ResNet-56 for small images: 57 convolutions in 27 residual blocks, 1 dense layer.

    Based on arXiv:1512.03385, with 1x1 convolutions where the shape changes.
    """

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        return small_image_layers(in_channels, num_classes, (9, 9, 9), 16)
