from secateur.utils.layers import Chain, Conv, Pool


class LeNet5(Chain):
    """LeNet-5 with batch norm: 3 convolutions, 2 dense layers."""

    smallest_image = 28
    convolutions = (Conv(6, 5), Pool(), Conv(16, 5, padding=0), Pool(), Conv(120, 5, padding=0))
    averaged = 3
    dense = (84,)
