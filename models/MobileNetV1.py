import functools

from torch import nn

from secateur.utils.layers import Network, conv_block, linear

#: channels and stride of each block
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNetV1(Network):
    """MobileNet v1 for small images: a stem and 13 depthwise separable blocks, 1 dense layer.

    Based on arXiv:1704.04861, with strides for images of 32 pixels.
    """

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        inputs = 32
        block = functools.partial(conv_block, bias=False, act=nn.ReLU)
        layers = block(in_channels, inputs, 3, 1)
        for outputs, stride in BLOCKS:
            layers += block(inputs, inputs, 3, 1, stride=stride, groups=inputs)
            layers += block(inputs, outputs, 1)
            inputs = outputs
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), linear(inputs, num_classes)
