import functools

from torch import nn

from secateur.utils.layers import Conv, Network, Pool, conv_block, convolution_chain, initialise_as_torch, linear


class AlexNetCifar(Network):
    """AlexNet for CIFAR without norms: 5 convolutions with ReLU, 1 dense layer.

    Based on doi:10.1145/3065386, with an 11x11 stem of stride 4 and a single dense layer. The weights are
    initialised as torch does.
    """

    smallest_image = 13
    usual_image = 32  # with 28 pixels the input of the last layers would be a single pixel
    convolutions = (
        *(Conv(64, 11, stride=4), Pool()),
        *(Conv(192, 5), Pool()),
        *(Conv(384), Conv(256), Conv(256)),
    )

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        block = functools.partial(conv_block, act=nn.ReLU, norm=False)
        layers = convolution_chain(in_channels, self.convolutions, block)
        # equal to the published 2x2 pooling for 32 pixels; one pixel for all other sizes
        return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1)), linear(256, num_classes)

    def initialise_weights(self) -> None:
        initialise_as_torch(self)
