"""Make the embedded data set FASHION_MINI from the full Fashion-MNIST.

    python -m benchmarks.make_fashion_mini [--source DIR] [--output FILE]

The selection depends on a seed and on the positions of the images in the published files only, so that the arrays
are reproducible. Prints the mean and standard deviation of the training pixels for the class attributes.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np

from secateur.utils.data.FASHION import FASHION
from secateur.utils.data.FASHION_MINI import FASHION_MINI
from secateur.utils.errors import UsageError

SEED = 333
SOURCE = FASHION.system_folders[0]
PER_CLASS = {"train": 600, "test": 200}


def chosen(labels: np.ndarray, part: str, per_class: int) -> np.ndarray:
    """Return `per_class` positions of every class in `labels` (int64, (N,)), ascending.

    The positions with the smallest hashes are selected: unlike the stream of a random generator, a hash does not
    depend on the version of a library.
    """

    def rank(position: int) -> bytes:
        return hashlib.sha256(f"{SEED} {part} {position}".encode()).digest()

    positions: list[int] = []
    for label in np.unique(labels):
        candidates = np.flatnonzero(labels == label).tolist()
        if len(candidates) < per_class:
            raise UsageError(f"class {label} has {len(candidates)} {part} images, {per_class} are needed")
        positions += sorted(candidates, key=rank)[:per_class]
    return np.sort(np.asarray(positions))


def make(source: Path) -> dict[str, np.ndarray]:
    """Return {train,test}_images, uint8 (N, 28, 28), and {train,test}_labels, uint8 (N,)."""
    full = FASHION()
    arrays: dict[str, np.ndarray] = {}
    for part, per_class in PER_CLASS.items():
        # not `load`, which would also search other folders
        missing = [name for name in full.needed(part == "train") if full.path(source, name) is None]
        if missing:
            raise UsageError(f"--source {source} lacks {', '.join(missing)}")
        images, labels = full.read(source, part == "train")
        positions = chosen(labels.numpy(), part, per_class)
        arrays[f"{part}_images"] = images.squeeze(1).numpy()[positions]
        arrays[f"{part}_labels"] = labels.numpy()[positions].astype(np.uint8)
    return arrays


def main() -> int:
    """Write the file; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the embedded data set FASHION_MINI.")
    parser.add_argument("--source", type=Path, default=SOURCE, metavar="DIR",
                        help="folder with the idx files of Fashion-MNIST (default: %(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=FASHION_MINI.file, metavar="FILE",
                        help="file to write (default: %(default)s)")  # fmt: skip
    options = parser.parse_args()
    try:
        arrays = make(options.source)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    with options.output.open("wb") as file:  # given a path, NumPy would append a suffix
        np.savez_compressed(file, allow_pickle=False, **arrays)
    pixels = arrays["train_images"] / 255
    mean, std = pixels.mean(), pixels.std()
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, mean {mean:.4f}, std {std:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
