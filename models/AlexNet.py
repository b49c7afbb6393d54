from secateur.utils.layers import Chain, Conv, Pool


class AlexNet(Chain):
    """AlexNet for small images, with batch norm: 5 convolutions, 3 dense layers."""

    smallest_image = 7
    convolutions = (Conv(64, 5), Pool(3), Conv(192, 5), Pool(3), Conv(384), Conv(256), Conv(512))
    averaged = 2
    dense = (4096, 4096)
