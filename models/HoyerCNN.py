import functools

from torch import nn

from secateur.utils.layers import Conv, Network, Pool, conv_block, convolution_chain, initialise_as_torch, linear


class HoyerCNN(Network):
    """LeNet-5 without norms, the CNN of DeepHoyer (arXiv:1908.09979): 2 convolutions, 2 dense layers.

    It returns logits, for the loss CrossEntropy; the original's log-softmax and negative log-likelihood are equal
    to it. The weights are initialised as torch does.
    """

    smallest_image = 16
    convolutions = (Conv(20, 5, padding=0), Pool(), Conv(50, 5, padding=0), Pool())

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        block = functools.partial(conv_block, act=nn.ReLU, norm=False)
        features = nn.Sequential(*convolution_chain(in_channels, self.convolutions, block))
        side = ((image_size - 4) // 2 - 4) // 2  # each 5x5 convolution takes 4 pixels, each pooling halves
        classifier = nn.Sequential(linear(50 * side**2, 500), nn.ReLU(), linear(500, num_classes))
        return features, classifier

    def initialise_weights(self) -> None:
        initialise_as_torch(self)
