import functools

from torch import nn

from secateur.models.ResNetCifar import ResNetCifar
from secateur.utils.residual import EXPANSION, PreActBlock, cifar_blocks, small_image_layers


class PreResNet(ResNetCifar):
    """ResNet for CIFAR with norm and ReLU first: a stem, 3 stages of residual blocks, 1 dense layer.

    Based on arXiv:1603.05027; options and depths are those of ResNetCifar. Where the shape changes, a 1x1
    convolution of the input, without norm, is added.

    Example:
        >>> from secateur import build
        >>> model = build("models", "PreResNet", in_channels=3, depth=110)
        >>> sum(tensor.numel() for tensor in model.parameters())
        1730522
    """

    def layers(self, in_channels: int, num_classes: int, image_size: int) -> tuple[nn.Module, nn.Module]:
        count, bottleneck = cifar_blocks(type(self).__name__, self.depth, self.block, self.legacy_depth_rule)
        return small_image_layers(
            in_channels, num_classes, (count,) * 3, 16 * EXPANSION if bottleneck else 16,
            functools.partial(PreActBlock, bottleneck=bottleneck, raw_skip=True),
            stem=16, stem_norm=False, last_norm=True,
        )  # fmt: skip
