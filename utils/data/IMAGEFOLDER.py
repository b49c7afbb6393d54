import os
from pathlib import Path

from secateur import UsageError
from secateur.utils.data._class_folders import ENDINGS, ClassFolders, folder_names, image_tree


class IMAGEFOLDER(ClassFolders):
    """Your own images in DATA_DIR/train/CLASS/* and DATA_DIR/test/CLASS/* (or val), any size, colour.

    The classes are the folders in `train`, sorted by name; those in `test` must be among them. `val` is used
    if there is no `test`. Normalised with the constants of ImageNet.
    """

    needs_folder = True
    layout = f"train/CLASS/* and test/CLASS/* (or val/CLASS/*), files that end in {', '.join(ENDINGS)}"
    lacking = True

    def part(self, train: bool) -> Path:
        """Return the folder of one part; raises UsageError if there is none."""
        names = ("train",) if train else ("test", "val")
        if self.data_dir is None:
            raise UsageError(f"IMAGEFOLDER needs data_dir, a folder with {self.layout}", argument="data_dir")
        root = Path(os.path.expanduser(self.data_dir))
        for folder in (root / name for name in names):
            if folder.is_dir():
                return folder
        missing = " or ".join(names)
        raise UsageError(
            f"data_dir {root} has no folder {missing}: IMAGEFOLDER needs {self.layout}", argument="data_dir"
        )

    def images(self, train: bool) -> dict[str, list[str]]:
        """Return the paths of the images in and below each class folder of one part."""
        part = self.part(train)
        return {name: image_tree(part / name) for name in folder_names(part)}

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of folders in DATA_DIR/train."""
        return len(self.folder_names)
