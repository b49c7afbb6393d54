from secateur.models.ResNet18 import ResNet18


class ResNet34(ResNet18):
    """ResNet-34 with batch norm: 36 convolutions in 16 residual blocks, 2 dense layers."""

    depths = (3, 4, 6, 3)
