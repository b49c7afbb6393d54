from secateur.utils.data._idx import IdxDataSet


class MNIST(IdxDataSet):
    """MNIST: 60,000 + 10,000 grey 28x28 handwritten digits, 10 classes.

    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Proc. IEEE 86(11), 1998.
    """

    reader = "MNIST"
    folders = ("MNIST/raw",)
    mean = (0.1307,)
    std = (0.3081,)
    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
