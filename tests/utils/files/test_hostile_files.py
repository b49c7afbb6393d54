"""Files that would block, fill the memory or never end are refused in one line that names them."""

import gzip
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.utils.data import _idx, _pictures
from secateur.utils.data.CIFAR10 import CIFAR10
from secateur.utils.data.FASHION import FASHION
from secateur.utils.data.FASHION_MINI import FASHION_MINI
from secateur.utils.data.IMAGEFOLDER import IMAGEFOLDER
from secateur.utils.data.IMAGENET import IMAGENET
from secateur.utils.data.IMAGENETTE import IMAGENETTE
from secateur.utils.data.MNIST import MNIST
from secateur.utils.data.OMNIGLOT import OMNIGLOT
from secateur.utils.data.TINYIMAGENET import TINYIMAGENET
from secateur.utils.files.regular_file import check_regular, check_zip, open_regular
from secateur.utils.loading import dataset
from secateur.utils.loading.loaders import make_loaders
from tests.utils.loading.test_dataset import cifar_files, idx_bytes, idx_files, usage_error, write_files, write_idx

KINDS = ["a named pipe", "a folder", "a socket", "a device", "a loop", "nowhere"]


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A read that waits for a writer fails the test instead of hanging it."""
    import signal

    def fail(*_: object) -> None:
        raise AssertionError("still reading after 20 seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path) -> Path:
    """Make something of this kind at `path`, in the place of what is there."""
    path.unlink(missing_ok=True)
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(here)
    else:
        path.symlink_to({"a device": "/dev/zero", "a loop": path}.get(kind, path.parent / "is nowhere"))
    return path


def pictures(root: Path, classes: dict[str, list[str]]) -> Path:
    """Write small images under the names of `classes` to folder after folder below `root`."""
    for place, names in classes.items():
        (root / place).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (6, 4)).save(root / place / name)
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    path = put(kind, tmp_path / "x")
    for message in (usage_error(lambda: check_regular(path)), usage_error(lambda: open_regular(path))):
        assert str(path) in message and kind in message


def test_a_regular_file_is_measured_and_opened(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert check_regular(tmp_path / "link", 5) == 5
    with open_regular(path) as file:
        assert file.read() == b"12345"
    assert "5 bytes, at most 4" in usage_error(lambda: check_regular(path, 4))
    assert "there is no file" in usage_error(lambda: check_regular(tmp_path / "y"))
    for odd in ("a\0b", "n" * 300):
        assert "\n" not in usage_error(lambda odd=odd: check_regular(tmp_path / odd))


@pytest.mark.parametrize("count", [1, 1337, 3 * 1337])
def test_gzip_files_are_unpacked_up_to_the_limit_and_not_beyond(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = MNIST().needed(True)
    for name, shape in zip(names, [(count, 28, 28), (count,)], strict=True):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(shape, np.uint8))))
    size = 16 + count * 28 * 28
    monkeypatch.setattr(_idx, "LARGEST_FILE", size)
    assert MNIST().read(tmp_path, True)[0].shape == (count, 1, 28, 28)
    monkeypatch.setattr(_idx, "LARGEST_FILE", size - 1)
    assert f"{names[0]}.gz unpacks to more than" in usage_error(lambda: MNIST().read(tmp_path, True))


def test_a_zip_archive_may_not_declare_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * 600)
        archive.writestr("b", b"\0" * 400)
    check_zip(path, 1000)
    assert "x.npz unpacks to 1,000 bytes" in usage_error(lambda: check_zip(path, 999))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_what_stands_for_an_idx_file_is_named(kind: str, packed: bool, number: int, tmp_path: Path) -> None:
    folder = write_idx(tmp_path, packed)
    name = MNIST().needed(True)[number] + ".gz" * packed
    path = put(kind, folder / name)
    message = usage_error(lambda: MNIST(data_dir=folder, download=False).load(True))
    assert str(path) in message and kind in message


def test_an_idx_file_beside_a_folder_of_its_name_is_read(tmp_path: Path) -> None:
    folder = write_idx(tmp_path, packed=True)
    for name in idx_files():
        (folder / name).mkdir()
    assert len(MNIST(data_dir=folder, download=False).load(True)[0]) == 12


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("case", ["bomb", "truncated", "large", "not gzip", "damaged", "empty"])
def test_packed_idx_files_are_bounded(
    case: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (dataset, _idx):
        monkeypatch.setattr(module, "LARGEST_FILE", 2**16)
    folder = write_idx(tmp_path, packed=True)
    path = folder / f"{FASHION().needed(True)[number]}.gz"
    good = path.read_bytes()
    path.write_bytes({
        "bomb": gzip.compress(bytes(2**24)), "truncated": good[:-10], "large": bytes(2**16 + 1),
        "not gzip": b"\0" * 100, "damaged": good[:20] + b"\xff" * 8 + good[28:], "empty": b"",
    }[case])  # fmt: skip
    assert str(path) in usage_error(lambda: FASHION(data_dir=folder, download=False).load(True))


def test_the_limit_is_far_above_the_published_files() -> None:
    assert 1.5 * max(60_000 * 28 * 28 + 16, 155_249_918) < dataset.LARGEST_FILE


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_for_a_pickle_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / "cifar-10-batches-py", cifar_files(CIFAR10, monkeypatch))
    path = put(kind, folder / "data_batch_3")
    message = usage_error(lambda: CIFAR10(data_dir=tmp_path, download=False).load(True))
    assert str(path) in message and kind in message


def test_a_pickle_is_measured_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / "cifar-10-batches-py", cifar_files(CIFAR10, monkeypatch))
    with (folder / "data_batch_3").open("wb") as file:
        file.truncate(2**42)  # takes no space, and hours to read
    message = usage_error(lambda: CIFAR10(data_dir=tmp_path, download=False).load(True))
    assert str(folder / "data_batch_3") in message and "at most" in message


def test_the_embedded_file_is_held_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", bytes(2**24))
    monkeypatch.setattr(FASHION_MINI, "file", path)
    monkeypatch.setattr("secateur.utils.data.FASHION_MINI.LARGEST_FILE", 2**20)
    assert str(path) in usage_error(lambda: FASHION_MINI().load(True))
    monkeypatch.setattr(FASHION_MINI, "file", put("a named pipe", path))
    assert f"{path} is a named pipe" in usage_error(lambda: FASHION_MINI().load(True))


SETS: dict[str, tuple[Callable[[Path], Any], dict[str, list[str]], str]] = {
    "IMAGEFOLDER": (
        lambda root: IMAGEFOLDER(data_dir=root),
        {"train/ant": ["a.png"], "train/owl/deep": ["b.png"], "test/ant": ["a.png"]}, "train/owl/deep",
    ),
    "IMAGENETTE": (
        lambda root: IMAGENETTE(data_dir=root, download=False),
        {f"{part}/{name}": ["a.png"] for part in ("train", "val") for name in ("n1", "n2")}, "train/n2",
    ),
    "IMAGENET": (
        lambda root: IMAGENET(data_dir=root, download=False),
        {f"{part}/{name}": ["a.png"] for part in ("train", "val") for name in ("n1", "n2")}, "train/n1",
    ),
    "TINYIMAGENET": (
        lambda root: TINYIMAGENET(data_dir=root, download=False),
        {"train/n1/images": ["a.png"], "val/n1": ["a.png"]}, "train/n1/images",
    ),
    "OMNIGLOT": (
        lambda root: OMNIGLOT(data_dir=root, download=False),
        {"images_background/A/c1": ["1_01.png", "1_05.png"], "images_evaluation/B/c2": ["1_01.png", "1_05.png"]},
        "images_background/A/c1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_what_has_the_name_of_an_image_is_refused_before_anything_is_read(
    name: str, kind: str, tmp_path: Path
) -> None:
    make, files, place = SETS[name]
    pictures(tmp_path, files)
    assert len(make(tmp_path).open(True, 4)) >= 1
    path = put(kind, tmp_path / place / "x_02.PNG")
    message = usage_error(lambda: make(tmp_path).open(True, 4))
    assert str(path) in message and kind in message


@pytest.mark.parametrize("name", ["IMAGEFOLDER", "IMAGENETTE", "TINYIMAGENET"])
def test_a_loop_among_the_classes_is_named(name: str, tmp_path: Path) -> None:
    make, files, _ = SETS[name]
    pictures(tmp_path, files)
    path = put("a loop", tmp_path / "train" / "zebra")
    assert f"{path} is a loop" in usage_error(lambda: make(tmp_path).open(True, 4))


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_that_lead_round_in_a_circle_end(target: str, tmp_path: Path) -> None:
    pictures(tmp_path, {"train/ant/deep": ["a.png"], "test/ant": ["a.png"]})
    for number in range(3):  # three links would be followed 3 ** 40 times
        (tmp_path / "train" / "ant" / "deep" / f"again{number}").symlink_to(target, target_is_directory=True)
    message = usage_error(lambda: IMAGEFOLDER(data_dir=tmp_path).open(True, 4))
    assert "again" in message and "link" in message


def test_images_behind_links_count_and_keep_the_order_of_torchvision(tmp_path: Path) -> None:
    from secateur.utils.vision import torchvision

    pictures(tmp_path, {
        "train/ant": ["b.png", "a.JPG", ".h.png"], "train/ant-x/z": ["c.png"], "train/ant/q": ["d.png"],
        "train/ant/q.d": ["e.png"], "elsewhere": ["f.png"],
    })  # fmt: skip
    (tmp_path / "train" / "ant" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "ant" / "g.png").symlink_to(tmp_path / "elsewhere" / "f.png")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    opened = IMAGEFOLDER(data_dir=tmp_path).open(True, 4)
    theirs = torchvision().datasets.ImageFolder(str(tmp_path / "train"))
    assert list(zip(opened.paths, opened.targets, strict=True)) == theirs.samples
    assert len(opened) == 8


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nowhere"])
@pytest.mark.parametrize("name", ["val/val_annotations.txt", "words.txt"])
def test_tiny_imagenets_lists_are_regular_files(name: str, kind: str, tmp_path: Path) -> None:
    pictures(tmp_path, {"train/n1/images": ["a.png"], "val/images": ["a.png"]})
    (tmp_path / "val" / "val_annotations.txt").write_text("a.png\tn1\n")
    path = put(kind, tmp_path / name)
    made = TINYIMAGENET(data_dir=tmp_path, download=False)
    message = usage_error(lambda: (made.open(False, 4), made.class_names))
    assert str(path) in message and kind in message


def png(width: int, height: int) -> bytes:
    """A file of a hundred bytes that claims to be an image of this size."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    chunks = (
        struct.pack(">I", len(x)) + n + x + struct.pack(">I", zlib.crc32(n + x))
        for n, x in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("width", "height"), [(10**5, 10**5), (2**31 - 1, 2**31 - 1), (2**28, 1), (1, 2**28)])
def test_an_image_of_gigantic_dimensions_is_named(width: int, height: int, tmp_path: Path) -> None:
    pictures(tmp_path, {"train/ant": [], "test/ant": []})
    path = tmp_path / "train" / "ant" / "x.png"
    path.write_bytes(png(width, height))
    message = usage_error(lambda: make_loaders(IMAGEFOLDER(data_dir=tmp_path), batch_size=1, seed=0, val_share=0))
    assert f"{path} has too many pixels" in message


@pytest.mark.filterwarnings("error")
def test_a_large_image_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 6), (10, 20, 30)).save(path)
    made = _pictures.Pictures([(str(path), 0)], 4)
    assert made[0][:, 0, 0].tolist() == [10, 20, 30]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert f"{path} has too many pixels" in usage_error(lambda: made[0])


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (20_001, 3)])
def test_a_photograph_far_longer_than_wide_is_not_blown_up(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", size, (10, 20, 30)).save(path)
    resize, largest = Image.Image.resize, [0]

    def watched(image: Image.Image, wanted: tuple[int, int], *rest: Any, **more: Any) -> Image.Image:
        largest.append(wanted[0] * wanted[1])
        return resize(image, wanted, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    square = _pictures.Photographs([(str(path), 0)], 28)[0]
    assert square.shape == (3, 28, 28) and torch.equal(square[:, 14, 14], torch.tensor([10, 20, 30]).byte())
    assert 0 < max(largest) <= 101 * 32 * 32


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_file_is_looked_at_again_when_it_is_read(kind: str, tmp_path: Path) -> None:
    made = _pictures.Pictures([(str(put(kind, tmp_path / "x.png")), 0)], 4)
    message = usage_error(lambda: made[0])
    assert str(tmp_path / "x.png") in message and kind in message


def test_files_that_are_programs_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    assert str(path) in usage_error(lambda: _pictures.Pictures([(str(path), 0)], 4)[0])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "MPO"])
def test_every_bitmap_is_read_whatever_its_ending(form: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8), (200, 200, 200)).save(path, format=form)
    assert int(_pictures.Pictures([(str(path), 0)], 4)[0].float().mean()) in range(195, 206)
