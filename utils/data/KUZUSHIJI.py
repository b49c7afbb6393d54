from secateur.utils.data._idx import IdxDataSet


class KUZUSHIJI(IdxDataSet):
    """Kuzushiji-MNIST: 60,000 + 10,000 grey 28x28 cursive Japanese characters, 10 classes.

    T. Clanuwat et al., arXiv:1812.01718.
    """

    reader = "KMNIST"
    folders = ("KMNIST/raw",)
    mean = (0.1918,)
    std = (0.3483,)
    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
