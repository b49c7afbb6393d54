from torch import nn

from secateur.utils.layers import Network, linear


class LogisticRegression(Network):
    """Logistic regression on the pixels: 1 dense layer."""

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        return nn.Flatten(), linear(in_channels * image_size**2, num_classes)
