from secateur.utils.data._class_folders import PublishedFolders


class IMAGEWOOF(PublishedFolders):
    """Imagewoof: about 13,000 colour photographs of 10 breeds of dogs in ImageNet; 128x128 by default.

    github.com/fastai/imagenette, Apache 2.0. Version 2 (9,025 + 3,929 images) is searched for before version 1
    (12,454 + 500) and the images of 320 pixels before the others. Normalised with the constants of ImageNet;
    training images are augmented only with --augment, test images never.
    """

    published = 10
    folders = ("imagewoof2-320", "imagewoof2", "imagewoof2-160",
               "imagewoof-320", "imagewoof", "imagewoof-160")  # fmt: skip
    origin = ("https://s3.amazonaws.com/fast-ai-imageclas/imagewoof2-320.tgz and unpack it "
              "in the folder data_dir")  # fmt: skip
    names_of = {
        "n02086240": "Shih-Tzu", "n02087394": "Rhodesian ridgeback", "n02088364": "beagle",
        "n02089973": "English foxhound", "n02093754": "Border terrier", "n02096294": "Australian terrier",
        "n02099601": "golden retriever", "n02105641": "Old English sheepdog", "n02111889": "Samoyed",
        "n02115641": "dingo",
    }  # fmt: skip
