from pathlib import Path

from secateur.utils.data._idx import IdxDataSet


class FASHION(IdxDataSet):
    """Fashion-MNIST: 60,000 + 10,000 grey 28x28 images of clothes, 10 classes.

    H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747.
    """

    reader = "FashionMNIST"
    folders = ("FashionMNIST/raw",)
    system_folders = (Path("/usr/share/datasets/fashion-mnist"),)  # Debian's package dataset-fashion-mnist
    mean = (0.2860,)
    std = (0.3530,)
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
