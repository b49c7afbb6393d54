import re
from collections.abc import Sequence
from pathlib import Path

from secateur import UsageError, torchvision
from secateur.utils.data._class_folders import PublishedFolders, folder_names, images_in

DRAWER = re.compile(r"_(\d+)\.\w+")
#: the drawings of every fifth person are the test part
TEST_EVERY = 5


class OMNIGLOT(PublishedFolders):
    """Omniglot: 25,968 + 6,492 grey 105x105 drawings of 1,623 characters of 50 alphabets, by 20 people each.

    B. Lake, R. Salakhutdinov, J. Tenenbaum, Science 350, 2015; MIT licence. The published parts, background
    and evaluation, have no character in common, so that a classifier trained on one cannot be tested on the
    other. Here both are one set: the drawings of persons 5, 10, 15 and 20 of each character are the test part,
    those of the other 16 the training part. A class is ALPHABET/CHARACTER, sorted by name. Training images are
    augmented only with --augment.
    """

    published = 1623
    folders = ("omniglot-py", "omniglot")
    needs = ("images_background", "images_evaluation")
    layout = "images_background/ALPHABET/CHARACTER/*_DRAWER.png and images_evaluation/ALPHABET/CHARACTER/*"
    mode = "L"
    in_channels = 1
    image_size = 105
    # paper is 1 and ink 0, so that std = sqrt(mean * (1 - mean))
    mean = (0.9221,)
    std = (0.2681,)

    def part(self, train: bool) -> Path:
        """Return the folder of the set: both published parts have drawings of both parts."""
        return self.present()

    def classes(self) -> tuple[str, ...]:
        """Return ALPHABET/CHARACTER of all characters of both published parts, sorted."""
        return tuple(sorted(self._folders()))

    def _folders(self) -> dict[str, Path]:
        root = self.present()
        folders: dict[str, Path] = {}
        for part in self.needs:
            for alphabet in folder_names(root / part):
                for character in folder_names(root / part / alphabet):
                    name = f"{alphabet}/{character}"
                    if name in folders:
                        raise UsageError(f"OMNIGLOT: {name} is in both parts of {root}")
                    folders[name] = root / part / alphabet / character
        return folders

    def images(self, train: bool) -> dict[str, list[str]]:
        """Return the paths of the drawings of every character, of the drawers of one part."""
        return {
            name: [path for path in images_in(folder) if (_drawer(path) % TEST_EVERY == 0) != train]
            for name, folder in self._folders().items()
        }

    def sources(self) -> tuple[str, ...]:
        """Return the addresses of torchvision's two archives."""
        base = torchvision().datasets.Omniglot
        return tuple(f"{base.download_url_prefix}/{part}.zip" for part in self.needs)

    def fetch(self, root: Path, sources: Sequence[str]) -> None:
        """Download and unpack both archives to `root / "omniglot-py"`."""
        for background in (True, False):
            torchvision().datasets.Omniglot(root, background=background, download=True)
        for archive in (root / self.folders[0]).glob("*.zip"):
            archive.unlink()


def _drawer(path: str) -> int:
    """Return the number of the person from the name of a drawing, such as 0709_17.png."""
    match = DRAWER.search(Path(path).name)
    if match is None:
        raise UsageError(f"OMNIGLOT: {path} is not named CHARACTER_PERSON, as in 0709_17.png")
    return int(match[1])
