from secateur.criterions.ChannelNorm import ChannelNorm


class EfficientConvNets(ChannelNorm):
    """L1 norm of each filter, with the same share of every layer pruned; after training, followed by fine-tuning.

    Li, Kadav, Durdanovic, Samet and Graf, 2016, arXiv:1608.08710.
    """

    scope = "layer"

    def __init__(self) -> None:
        super().__init__(p=1)
