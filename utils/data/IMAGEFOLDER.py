import functools
import os
from pathlib import Path

from secateur import UsageError
from secateur.utils.data._listing import ENDINGS, folder_names, image_tree
from secateur.utils.data._pictures import Pictures
from secateur.utils.loading.dataset import FolderDataSet
from secateur.utils.suggest import one_line


class IMAGEFOLDER(FolderDataSet):
    """Your own images in DATA_DIR/train/CLASS/* and DATA_DIR/test/CLASS/* (or val), any size, colour.

    The classes are the folders in `train`, sorted by name; those in `test` must be among them. `val` is used
    if there is no `test`. Normalised with the constants of ImageNet.
    """

    needs_folder = True
    in_channels = 3
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def _folder(self, train: bool) -> Path:
        """Return the folder of one part; raises UsageError if there is none."""
        names = ("train",) if train else ("test", "val")
        wanted = f"DIR/{' or DIR/'.join(names)} with one folder of images for every class"
        if self.data_dir is None:
            raise UsageError(f"IMAGEFOLDER needs --data_dir DIR and in it {wanted}")
        root = Path(os.path.expanduser(self.data_dir))
        for folder in (root / name for name in names):
            if folder.is_dir():
                return folder
        raise UsageError(f"--data_dir {root} has no folder {' or '.join(names)}: IMAGEFOLDER needs {wanted}")

    @staticmethod
    def _class_folders(folder: Path) -> list[str]:
        """Return the sorted names of the folders in `folder`, without hidden ones (.ipynb_checkpoints)."""
        names = list(folder_names(folder))
        if not names:
            raise UsageError(f"{folder} has no folders: IMAGEFOLDER needs one with images for every class")
        return names

    @functools.cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the folders in DATA_DIR/train, sorted."""
        return tuple(self._class_folders(self._folder(train=True)))

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of folders in DATA_DIR/train."""
        return len(self.class_names)

    def open(self, train: bool, image_size: int) -> Pictures:
        """Return the images of one part, as squares of `image_size` pixels."""
        folder = self._folder(train)
        present = set(self._class_folders(folder))
        extra = sorted(present - set(self.class_names))
        if extra:
            raise UsageError(one_line(f"{folder} has classes that `train` lacks: {', '.join(extra)}"))
        files = [
            (path, number)
            for number, name in enumerate(self.class_names) if name in present
            for path in image_tree(folder / name)
        ]  # fmt: skip
        wanted = f"IMAGEFOLDER reads files that end in {', '.join(ENDINGS)}"
        if not files:
            raise UsageError(f"{folder} has no images: {wanted}")
        empty = sorted(set(self.class_names) - {self.class_names[target] for _, target in files})
        if train and empty:
            raise UsageError(one_line(f"{folder} has no images of {', '.join(empty)}: {wanted}"))
        return Pictures(files, image_size)
