from secateur.utils.layers import Chain, Conv, Pool


class Conv6(Chain):
    """Conv-6 with batch norm: 6 convolutions, 3 dense layers."""

    smallest_image = 4
    convolutions = (Conv(64), Conv(64), Pool(), Conv(128), Conv(128), Pool(), Conv(256), Conv(256))
    averaged = 3
    dense = (256, 256)
