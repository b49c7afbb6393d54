import functools
import re

from secateur import torchvision
from secateur.utils.data._class_folders import PublishedFolders
from secateur.utils.data._pictures import Photographs

WNID = re.compile(r"n\d{8}")


class IMAGENET(PublishedFolders):
    """ImageNet (ILSVRC 2012): 1,281,167 + 50,000 colour photographs, 1,000 classes; 224x224 by default.

    image-net.org, for research. Read from DATA_DIR/train/CLASS/* and DATA_DIR/val/CLASS/*; a subset of the classes
    is accepted. Test images are resized to a shorter side of 256 pixels and centre cropped to 224x224. Training
    images are random crops, flipped with probability 0.5 (`--augment resized_crop_flip`, the default here).
    Normalised with the constants of ImageNet.
    """

    published = 1000
    image_size: int | None = 224
    pictures = Photographs
    folders = ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC2012_img", "imagenet-1k", "ILSVRC/Data/CLS-LOC")
    origin = ("ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar at image-net.org and sort the images into "
              "one folder for each class")  # fmt: skip
    recommended = {"augment": "resized_crop_flip"}

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The published names if all published classes are present, else the names of the folders."""
        folders = self.folder_names
        if len(folders) != self.published or not all(WNID.fullmatch(name) for name in folders):
            return folders
        # the published order is that of the sorted folders
        return tuple(torchvision().models.get_model_weights("resnet18").DEFAULT.meta["categories"])
