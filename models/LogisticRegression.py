from torch import nn

from secateur.utils.layers import Network, initialise, linear


class LogisticRegression(Network):
    """Logistic regression on the pixels: 1 dense layer."""

    def __init__(self, *, in_channels: int = 1, num_classes: int = 10, image_size: int = 28) -> None:
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Flatten()
        self.classifier = linear(in_channels * image_size**2, num_classes)
        initialise(self)
