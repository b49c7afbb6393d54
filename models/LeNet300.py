from torch import nn

from secateur.utils.layers import Network, dense_block, linear


class LeNet300(Network):
    """LeNet-300-100 with batch norm: 3 dense layers."""

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        features = nn.Sequential(
            nn.Flatten(),
            *dense_block(in_channels * image_size**2, 300),
            *dense_block(300, 100),
        )
        return features, linear(100, num_classes)
