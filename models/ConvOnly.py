from torch import Tensor, nn

from secateur.utils.layers import Conv, Network, Pool, conv, convolution_chain, initialise


class ConvOnly(Network):
    """Convolutions only, with batch norm: 5 convolutions, no dense layer."""

    smallest_image = 26

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        chain = (Conv(64, 5, padding=1), Pool(), Conv(128), Pool(), Conv(64), Pool(), Conv(32), Pool(3, stride=3))
        self.features = nn.Sequential(*convolution_chain(in_channels, chain))
        self.classifier = nn.Sequential(conv(32, num_classes, 3, 1), nn.AdaptiveAvgPool2d(1))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        # the classifier is a convolution, so flatten its output
        return self.classifier(self.features(images)).flatten(1)
