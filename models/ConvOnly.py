from torch import Tensor, nn

from secateur.utils.layers import Conv, Network, Pool, conv, convolution_chain


class ConvOnly(Network):
    """Convolutions only, with batch norm: 5 convolutions, no dense layer."""

    smallest_image = 26

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        chain = (Conv(64, 5, padding=1), Pool(), Conv(128), Pool(), Conv(64), Pool(), Conv(32), Pool(3, stride=3))
        features = nn.Sequential(*convolution_chain(in_channels, chain))
        return features, nn.Sequential(conv(32, num_classes, 3, 1), nn.AdaptiveAvgPool2d(1))

    def forward(self, images: Tensor) -> Tensor:
        # the classifier is a convolution, so flatten its output
        return self.classifier(self.features(images)).flatten(1)
