from torch import nn

from secateur.utils.layers import Network, conv, linear

WIDTHS = (64, 128, 256, 512, 512)


class VGG13(Network):
    """VGG13 for small images: 10 convolutions, each with ReLU and then batch norm, 1 dense layer.

    Based on arXiv:1409.1556, with the order of layers and the single dense layer of arXiv:2009.11839.
    """

    smallest_image = 16
    usual_image = 32  # with 28 pixels the input of the last layers would be a single pixel

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        layers: list[nn.Module] = []
        inputs = in_channels
        for width in WIDTHS:
            for _ in range(2):
                layers += [conv(inputs, width, 3, 1, bias=False), nn.ReLU(), nn.BatchNorm2d(width)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        # equal to the last stage's 2x2 pooling for 32 pixels; one pixel for all other sizes
        layers[-1] = nn.AdaptiveMaxPool2d(1)
        return nn.Sequential(*layers), linear(inputs, num_classes)
