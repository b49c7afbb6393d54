import functools
import os
from pathlib import Path

from secateur import UsageError
from secateur.utils.data._class_folders import PublishedFolders, folder_names, images_in
from secateur.utils.files.bounded_yaml import Limits, read_text
from secateur.utils.loading.dataset import LARGEST_FILE

ANNOTATIONS = "val_annotations.txt"


class TINYIMAGENET(PublishedFolders):
    """Tiny ImageNet: 100,000 + 10,000 colour photographs of 64x64, 200 classes; 128x128 by default.

    Stanford CS231n. Tested on its validation part: the labels of its test part were never published. Read in
    the layout of the archive (train/WNID/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt) or with
    one folder of images for each class. `--image_size 64` keeps the native size. Normalised with the constants of
    ImageNet; training images are augmented only with --augment, test images never.
    """

    published = 200
    folders = ("tiny-imagenet-200", "tiny_imagenet", "tiny-imagenet", "tinyimagenet", "TinyImageNet")
    layout = (f"train/WNID/images/*.JPEG, val/images/*.JPEG and val/{ANNOTATIONS}, "
              "or train/CLASS/*.JPEG and val/CLASS/*.JPEG")  # fmt: skip
    origin = ("http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it "
              "in the folder data_dir")  # fmt: skip

    def images(self, train: bool) -> dict[str, list[str]]:
        """Return the paths of the images of every class of one part, by the name of the class folder."""
        part = self.part(train)
        if not train and os.path.lexists(part / ANNOTATIONS) and (part / "images").is_dir():
            return _annotated(part)
        files = {}
        for name in folder_names(part):
            inner = part / name / "images"
            files[name] = images_in(inner if inner.is_dir() else part / name)
        return files

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The first name of each class in words.txt, or the name of its folder if it has none."""
        file = self.present() / "words.txt"
        words = dict(_rows(file)) if os.path.lexists(file) else {}
        return tuple(words.get(name, name).partition(",")[0].strip() for name in self.folder_names)


def _annotated(part: Path) -> dict[str, list[str]]:
    """Group the images of val/images by their annotated class; the annotations must list exactly these files."""
    images: dict[str, list[str]] = {}
    there = {Path(path).name: path for path in images_in(part / "images")}
    for name, wnid in _rows(part / ANNOTATIONS):
        if name not in there:
            raise UsageError(f"TINYIMAGENET: {part / 'images' / name} is missing, but listed in {ANNOTATIONS}")
        images.setdefault(wnid, []).append(there.pop(name))
    if there:
        raise UsageError(f"TINYIMAGENET: {next(iter(there.values()))} has no line in {part / ANNOTATIONS}")
    return {wnid: sorted(paths) for wnid, paths in images.items()}


def _rows(file: Path) -> list[tuple[str, str]]:
    """Read the first two columns of a file with tab-separated columns."""
    rows = [line.split("\t") for line in read_text(file, Limits(LARGEST_FILE)).splitlines() if line]
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise UsageError(f"cannot read {file}: line {number} has no second column")
    return [(row[0], row[1]) for row in rows]
