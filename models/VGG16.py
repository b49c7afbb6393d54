from secateur.utils.layers import Chain, Conv, Pool


class VGG16(Chain):
    """VGG16 with batch norm: 13 convolutions, 3 dense layers.

    For small images, based on arXiv:1409.1556: the last convolution is twice as wide, and the last stage is
    averaged to 2x2 instead of pooled.
    """

    smallest_image = 16
    usual_image = 32  # with 28 pixels the input of the last layers would be a single pixel
    convolutions = (
        *(Conv(64), Conv(64), Pool()),
        *(Conv(128), Conv(128), Pool()),
        *(Conv(256), Conv(256), Conv(256), Pool()),
        *(Conv(512), Conv(512), Conv(512), Pool()),
        *(Conv(512), Conv(512), Conv(1024)),
    )
    averaged = 2
    dense = (4096, 4096)
