from collections.abc import Sequence
from pathlib import Path

from secateur import torchvision
from secateur.utils.data._class_folders import PublishedFolders


class IMAGENETTE(PublishedFolders):
    """Imagenette: about 13,000 colour photographs, 10 easy classes of ImageNet; 128x128 by default.

    github.com/fastai/imagenette, Apache 2.0. Version 2 (9,469 + 3,925 images) is searched for before version 1
    (12,894 + 500) and the images of 320 pixels before the others. Normalised with the constants of ImageNet;
    training images are augmented only with --augment, test images never.
    """

    published = 10
    folders = ("imagenette2-320", "imagenette2", "imagenette2-160",
               "imagenette-320", "imagenette", "imagenette-160")  # fmt: skip
    names_of = {
        "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player",
        "n03000684": "chain saw", "n03028079": "church", "n03394916": "French horn",
        "n03417042": "garbage truck", "n03425413": "gas pump", "n03445777": "golf ball", "n03888257": "parachute",
    }  # fmt: skip

    def sources(self) -> tuple[str, ...]:
        """Return the address of torchvision's archive of 320 pixels."""
        return (torchvision().datasets.Imagenette._ARCHIVES["320px"][0],)

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Download and unpack the archive of 320 pixels to `root / "imagenette2-320"`."""
        torchvision().datasets.Imagenette(root, split="train", size="320px", download=True)
