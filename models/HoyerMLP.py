from torch import nn

from secateur.utils.layers import Network, initialise_as_torch, linear


class HoyerMLP(Network):
    """LeNet-300-100 without norms, the MLP of DeepHoyer (arXiv:1908.09979): 3 dense layers.

    It returns logits, for the loss CrossEntropy; the original's log-softmax and negative log-likelihood are equal
    to it. The weights are initialised as torch does.
    """

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        features = nn.Sequential(
            nn.Flatten(),
            *(linear(in_channels * image_size**2, 300), nn.ReLU()),
            *(linear(300, 100), nn.ReLU()),
        )
        return features, linear(100, num_classes)

    def initialise_weights(self) -> None:
        initialise_as_torch(self)
