from secateur.utils.data._cifar import CifarDataSet


class CIFAR10(CifarDataSet):
    """CIFAR-10: 50,000 + 10,000 colour 32x32 photographs, 10 classes.

    A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    folders = ("cifar-10-batches-py",)
    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
