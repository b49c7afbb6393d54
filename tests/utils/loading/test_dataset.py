"""Data sets: reading, looking for files, downloading, errors. All files are made up here."""

import functools
import gzip
import hashlib
import http.server
import importlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.utils.data._class_folders import PublishedFolders
from secateur.utils.data.CIFAR10 import CIFAR10
from secateur.utils.data.CIFAR100 import CIFAR100
from secateur.utils.data.FASHION import FASHION
from secateur.utils.data.FASHION_MINI import FASHION_MINI
from secateur.utils.data.IMAGEFOLDER import IMAGEFOLDER
from secateur.utils.data.KUZUSHIJI import KUZUSHIJI
from secateur.utils.data.MNIST import MNIST
from secateur.utils.errors import UsageError
from secateur.utils.files import download
from secateur.utils.loading.dataset import DataSet, FileDataSet
from secateur.utils.vision import torchvision
from tests import ROOT

ALL = sorted(path.stem for path in (ROOT / "utils" / "data").glob("[!_]*.py"))
IDX_SETS = [FASHION, KUZUSHIJI, MNIST]
CIFAR_SETS = [CIFAR10, CIFAR100]


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave no place to find data in but what a test makes; return the empty current folder."""
    current = tmp_path_factory.mktemp("current")
    monkeypatch.chdir(current)
    monkeypatch.setattr(FASHION, "system_folders", ())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return current


def usage_error(call: Callable[[], object]) -> str:
    """Return the message of the UsageError that `call` must raise, which must be one line."""
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# ---------------------------------------------------------------------------------------------- made-up files


def idx_bytes(array: np.ndarray) -> bytes:
    """Return `array` (uint8) in the format of MNIST."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def idx_arrays(train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return images (uint8, (N, 28, 28)) and labels (uint8, (N,)): 12 for training, 5 for testing."""
    count = 12 if train else 5
    images = np.random.default_rng(train).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, np.arange(count, dtype=np.uint8) % 10


def idx_files() -> dict[str, bytes]:
    """Return file name -> content of the four files."""
    files = {}
    for part, train in (("train", True), ("t10k", False)):
        images, labels = idx_arrays(train)
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(labels)
    return files


def write_idx(folder: Path, packed: bool = False) -> Path:
    """Write the four files to `folder`; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in idx_files().items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return folder


def cifar_arrays(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Return images (uint8, (count, 3072)) and labels."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8), list(range(count))


def cifar_files(kind: type[FileDataSet], monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return file name -> content of a tiny set; make torchvision expect the checksums of these files."""
    reader = getattr(torchvision().datasets, kind.__name__)
    key = "labels" if kind is CIFAR10 else "fine_labels"
    files: dict[str, bytes] = {}
    for part in ("train_list", "test_list"):
        checksums = []
        for seed, (name, _) in enumerate(getattr(reader, part)):
            images, labels = cifar_arrays(3 if part == "train_list" else 2, seed)
            files[name] = pickle.dumps({"data": images, key: labels})
            checksums.append([name, hashlib.md5(files[name]).hexdigest()])
        monkeypatch.setattr(reader, part, checksums)
    meta = dict(reader.meta)
    files[meta["filename"]] = pickle.dumps({meta["key"]: list(kind.class_names or ())})
    meta["md5"] = hashlib.md5(files[meta["filename"]]).hexdigest()
    monkeypatch.setattr(reader, "meta", meta)
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write `files` to `folder`; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_pictures(root: Path, counts: dict[str, int], size: tuple[int, int] = (9, 7)) -> Path:
    """Write `counts[class]` png files of one grey level per class to root/class/; return `root`."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("L", size, 10 * (number + 1) + index).save(root / name / f"{index}.png")
    return root


# -------------------------------------------------------------------------------------------------- every set


@pytest.mark.parametrize("name", ALL)
def test_every_file_holds_a_data_set_of_its_name_that_says_what_it_is(name: str) -> None:
    kind = getattr(importlib.import_module(f"secateur.utils.data.{name}"), name)
    assert issubclass(kind, DataSet) and kind.name == name
    assert len((kind.__doc__ or "").splitlines()[0]) > 20
    assert len(kind.mean) == len(kind.std) == kind.in_channels
    assert all(0 < value < 1 for value in (*kind.mean, *kind.std))
    if issubclass(kind, PublishedFolders):
        assert kind.num_classes == kind.published
    elif name != "IMAGEFOLDER":  # the classes of both are those of the folder
        assert len(set(kind.class_names)) == kind.num_classes


@pytest.mark.parametrize("name", ALL)
def test_arguments_are_keyword_only_and_stored_unchanged(name: str) -> None:
    kind = getattr(importlib.import_module(f"secateur.utils.data.{name}"), name)
    folder = Path("~/somewhere")
    dataset = kind(data_dir=folder, download=False)
    assert dataset.data_dir is folder and dataset.download is False
    assert kind().data_dir is None and kind().download is True
    with pytest.raises(TypeError):
        kind(folder)


def test_utils_do_not_know_the_machinery() -> None:
    for path in (ROOT / "utils").rglob("*.py"):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if line.startswith(("import framework", "from framework"))], path


# -------------------------------------------------------------------------------------------------- idx files


@pytest.mark.parametrize("kind", IDX_SETS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", [False, True])
def test_idx_files_are_read_wherever_they_lie_in_data_dir(
    kind: type[FileDataSet], packed: bool, below: bool, tmp_path: Path
) -> None:
    write_idx(tmp_path / kind.folders[0] if below else tmp_path, packed)
    for train in (True, False):
        images, labels = kind(data_dir=str(tmp_path), download=False).load(train)
        expected_images, expected_labels = idx_arrays(train)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images.numpy(), expected_images[:, None])
        assert np.array_equal(labels.numpy(), expected_labels)


def test_places_are_tried_in_order(tmp_path: Path, nowhere_else: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "given", tmp_path / "system", nowhere_else / "data" / FASHION.folders[0]]
    monkeypatch.setattr(FASHION, "system_folders", (places[1],))
    for number, place in enumerate(places):
        write_idx(place)
        name = "train-labels-idx1-ubyte"
        (place / name).write_bytes(idx_bytes(np.full(12, number, dtype=np.uint8)))
    for number, place in enumerate(places):
        _, labels = FASHION(data_dir=places[0], download=False).load(train=True)
        assert labels.tolist() == [number] * 12
        for file in place.iterdir():
            file.unlink()
    assert "FASHION not found" in usage_error(lambda: FASHION(data_dir=places[0], download=False).load(True))


def test_files_lying_loose_in_the_download_folder_are_not_taken_for_a_set(nowhere_else: Path) -> None:
    write_idx(nowhere_else / "data")  # MNIST or Fashion-MNIST? The names do not tell.
    assert "not found" in usage_error(lambda: MNIST(download=False).load(True))


def test_the_other_part_need_not_be_there(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).unlink()
    assert len(MNIST(data_dir=tmp_path, download=False).load(True)[0]) == 12
    message = usage_error(lambda: MNIST(data_dir=tmp_path, download=False).load(False))
    assert str(tmp_path) in message and "t10k-images-idx3-ubyte[.gz]" in message


def test_missing_data_is_one_line_with_places_names_and_flag(tmp_path: Path, nowhere_else: Path) -> None:
    missing = tmp_path / "no" / "such"
    message = usage_error(lambda: MNIST(data_dir=missing, download=False).load(True))
    for part in ("MNIST", str(missing / "MNIST/raw"), f"{missing},", "data/MNIST/raw", "data_dir",
                 "train-images-idx3-ubyte[.gz]", "switched off"):  # fmt: skip
        assert part in message
    assert not missing.parent.exists() and not list(nowhere_else.iterdir())


def test_a_data_dir_with_half_of_the_files_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    message = usage_error(lambda: MNIST(data_dir=tmp_path).load(True))
    assert f"{tmp_path} is incomplete, it lacks train-labels-idx1-ubyte" in message


def test_a_data_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"{file} is not a folder" in usage_error(lambda: MNIST(data_dir=file).load(True))


def damaged_idx() -> dict[str, tuple[str, bytes]]:
    """Return case -> (file name, content that cannot be read)."""
    name, images = "train-images-idx3-ubyte", idx_files()["train-images-idx3-ubyte"]
    return {
        "empty": (name, b""),
        "short": (name, images[:-1]),
        "long": (name, images + b"0"),
        "text": (name, b"<html>404 not found</html>"),
        "huge": (name, images[:4] + b"\xff" * 12 + images[16:]),
        "labels": (name, idx_files()["train-labels-idx1-ubyte"]),
        "short gz": (f"{name}.gz", gzip.compress(images)[:-9]),
        "wrong gz": (f"{name}.gz", images),
        "bad crc": (f"{name}.gz", gzip.compress(images)[:-8] + bytes(8)),
    }


@pytest.mark.parametrize("case", damaged_idx())
def test_a_damaged_file_is_named(case: str, tmp_path: Path) -> None:
    name, content = damaged_idx()[case]
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / name).write_bytes(content)
    assert f"cannot read {tmp_path / name}:" in usage_error(lambda: MNIST(data_dir=tmp_path).load(True))


@pytest.mark.parametrize(("name", "array", "words"), [
    ("train-images-idx3-ubyte", np.zeros((12, 28, 27), np.uint8), "(1, 28, 27), not (1, 28, 28)"),
    ("train-labels-idx1-ubyte", np.zeros(11, np.uint8), "12 images and 11 labels"),
    ("train-labels-idx1-ubyte", np.full(12, 10, np.uint8), "labels 10..10, not 0..9"),
])  # fmt: skip
def test_files_of_another_set_are_refused(name: str, array: np.ndarray, words: str, tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(idx_bytes(array))
    message = usage_error(lambda: MNIST(data_dir=tmp_path).load(True))
    assert words in message and str(tmp_path) in message


# ------------------------------------------------------------------------------------------------------ CIFAR


@pytest.mark.parametrize("kind", CIFAR_SETS)
@pytest.mark.parametrize("inside", [False, True])
def test_cifar_is_read_from_its_folder_or_the_one_above(
    kind: type[FileDataSet], inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / kind.folders[0], cifar_files(kind, monkeypatch))
    dataset = kind(data_dir=folder if inside else tmp_path, download=False)
    batches = 5 if kind is CIFAR10 else 1
    for train, parts in (
        (True, [cifar_arrays(3, seed) for seed in range(batches)]),
        (False, [cifar_arrays(2, 0)]),
    ):
        images, labels = dataset.load(train)
        expected = np.concatenate([data for data, _ in parts]).reshape(-1, 3, 32, 32)
        assert images.dtype == torch.uint8 and np.array_equal(images.numpy(), expected)
        assert labels.dtype == torch.int64 and labels.tolist() == [label for _, part in parts for label in part]


def test_only_the_files_of_one_part_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / CIFAR10.folders[0], cifar_files(CIFAR10, monkeypatch))
    (folder / "test_batch").write_bytes(b"damaged")
    assert len(CIFAR10(data_dir=folder).load(True)[0]) == 15
    assert f"cannot read {folder / 'test_batch'}:" in usage_error(lambda: CIFAR10(data_dir=folder).load(False))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_a_pickle_without_the_published_checksum_is_never_opened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / CIFAR10.folders[0], cifar_files(CIFAR10, monkeypatch))
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert f"cannot read {folder / name}:" in usage_error(lambda: CIFAR10(data_dir=folder).load(True))
    assert not (tmp_path / "sprung").exists()


def test_a_renamed_cifar_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_files(tmp_path / "pictures", cifar_files(CIFAR100, monkeypatch))
    assert CIFAR100(data_dir=folder, download=False).load(False)[1].tolist() == [0, 1]


class OldArray:
    """Pickles an array the way the published files do, with 0 in place of False in the type."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self) -> tuple[object, ...]:
        function, arguments, state = cast(tuple[Any, Any, Any], self.array.__reduce__())
        return function, arguments, (state[0], state[1], OldType(), *state[3:])


class OldType:
    def __reduce__(self) -> tuple[object, ...]:
        return np.dtype, ("u1", 0, 1)


def test_the_published_way_to_pickle_arrays_gives_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cifar_files(CIFAR100, monkeypatch)
    images, labels = cifar_arrays(4, 9)
    files["test"] = pickle.dumps({"data": OldArray(images), "fine_labels": labels}, protocol=2)
    checksum = hashlib.md5(files["test"]).hexdigest()
    monkeypatch.setattr(torchvision().datasets.CIFAR100, "test_list", [["test", checksum]])
    folder = write_files(tmp_path / CIFAR100.folders[0], files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(CIFAR100(data_dir=folder).load(False)[0].flatten(1).numpy(), images)


# -------------------------------------------------------------------------------------------------- downloads


class Server:
    """Serves `files` (path -> content) on this machine, other paths with 404."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        files = self.files

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content or b"")

            do_HEAD = do_GET

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.server.shutdown()
    running.server.server_close()


def offer(server: Server, kind: type[FileDataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision download a tiny `kind` from `server`."""
    if kind is CIFAR10:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for name, content in cifar_files(CIFAR10, monkeypatch).items():
                entry = tarfile.TarInfo(f"{CIFAR10.folders[0]}/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        reader = torchvision().datasets.CIFAR10
        monkeypatch.setattr(reader, "url", f"{server.url}cifar-10-python.tar.gz")
        monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
        server.files["/cifar-10-python.tar.gz"] = archive.getvalue()
        return
    packed = {f"{name}.gz": gzip.compress(content) for name, content in idx_files().items()}
    reader = torchvision().datasets.MNIST
    monkeypatch.setattr(reader, "mirrors", [server.url])
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(reader, "resources", checksums)
    server.files.update({f"/{name}": content for name, content in packed.items()})


@pytest.mark.parametrize("kind", [MNIST, CIFAR10])
@pytest.mark.parametrize("given", [False, True])
def test_a_download_is_silent_and_found_again(
    kind: type[FileDataSet],
    given: bool,
    server: Server,
    tmp_path: Path,
    nowhere_else: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    offer(server, kind, monkeypatch)
    root = tmp_path / "new" / "folder" if given else nowhere_else / "data"
    images, labels = kind(data_dir=root if given else None).load(True)
    assert len(images) == len(labels) == (12 if kind is MNIST else 15)
    assert sorted(path.name for path in root.iterdir()) == [Path(kind.folders[0]).parts[0]]
    assert capfd.readouterr() == ("", "")
    server.files.clear()
    assert torch.equal(kind(data_dir=root if given else None).load(True)[0], images)


@pytest.mark.parametrize("trouble", ["nobody there", "not found", "damaged", "second file damaged"])
@pytest.mark.parametrize("given", [False, True])
def test_a_failed_download_says_why_and_leaves_nothing_behind(
    trouble: str,
    given: bool,
    server: Server,
    tmp_path: Path,
    nowhere_else: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    offer(server, MNIST, monkeypatch)
    if trouble == "nobody there":
        with socket.socket() as unused:  # a port that was free a moment ago
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        monkeypatch.setattr(torchvision().datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    elif trouble == "not found":
        server.files.clear()
    else:
        name = "train-images-idx3-ubyte.gz" if trouble == "damaged" else "train-labels-idx1-ubyte.gz"
        server.files[f"/{name}"] = b"damaged"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").touch()
    root = tmp_path / "mine" / "new" / "folder"
    message = usage_error(lambda: MNIST(data_dir=root if given else None).load(True))
    words = {"nobody there": "refused", "not found": "404"}.get(trouble, "corrupted")
    assert words in message.partition("download failed (")[2]
    assert [path.name for path in (tmp_path / "mine").rglob("*")] == ["keep.txt"]
    assert not list(nowhere_else.iterdir())
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() is None


def test_a_failed_download_leaves_an_older_one_alone(
    server: Server, nowhere_else: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, MNIST, monkeypatch)
    server.files.clear()
    old = nowhere_else / "data" / MNIST.folders[0] / "train-images-idx3-ubyte"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"half")
    assert "download failed" in usage_error(lambda: MNIST().load(True))
    assert [path for path in nowhere_else.rglob("*") if path.is_file()] == [old]


def test_a_server_that_never_answers_is_given_up(nowhere_else: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "DOWNLOAD_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mirror = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        monkeypatch.setattr(torchvision().datasets.MNIST, "mirrors", [mirror, mirror + "other/"])
        start = time.monotonic()
        message = usage_error(lambda: MNIST().load(True))
        assert time.monotonic() - start < 10
    assert "download failed" in message and ("timed out" in message or "no answer within 0.3 s" in message)
    assert not list(nowhere_else.iterdir())


def test_a_mirror_that_does_not_answer_is_passed_over(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, MNIST, monkeypatch)
    monkeypatch.setattr(download, "DOWNLOAD_TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mirrors = [f"http://127.0.0.1:{mute.getsockname()[1]}/", server.url]
        monkeypatch.setattr(torchvision().datasets.MNIST, "mirrors", mirrors)
        live, reasons = download.answering(mirrors, 1.0)
        assert live == [server.url] and mirrors[0] in reasons
        assert len(MNIST().load(False)[0]) == 5


# ----------------------------------------------------------------------------------------------- FASHION_MINI


def test_the_embedded_set_is_balanced_exactly() -> None:
    for train, each in ((True, 600), (False, 200)):
        images, labels = FASHION_MINI().load(train)
        assert images.dtype == torch.uint8 and images.shape == (10 * each, 1, 28, 28)
        assert labels.dtype == torch.int64 and torch.bincount(labels).tolist() == [each] * 10


def test_the_embedded_set_is_small_and_licensed() -> None:
    assert FASHION_MINI.file.stat().st_size < 4_500_000
    licence = FASHION_MINI.file.with_name("FASHION_MINI.LICENSE.txt").read_text(encoding="utf-8")
    assert "Copyright © 2017 Zalando SE, https://tech.zalando.com" in licence
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in licence


def test_mean_and_std_are_those_of_the_embedded_training_pixels() -> None:
    pixels = FASHION_MINI().load(True)[0].double() / 255
    std, mean = (round(value.item(), 4) for value in torch.std_mean(pixels, correction=0))
    assert (FASHION_MINI.mean, FASHION_MINI.std) == ((mean,), (std,))


@pytest.mark.parametrize("keep", [0, 100, 3_000_000])
def test_a_damaged_embedded_file_is_named(keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fashion_mini.npz"
    file.write_bytes(FASHION_MINI.file.read_bytes()[:keep])
    monkeypatch.setattr(FASHION_MINI, "file", file)
    assert f"cannot read {file}:" in usage_error(lambda: FASHION_MINI().load(True))


# ------------------------------------------------------------------------------------------------ IMAGEFOLDER


def test_a_folder_gives_its_classes_and_square_images(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"owl": 2, "ant": 3})
    write_pictures(tmp_path / "test", {"ant": 1})
    dataset = IMAGEFOLDER(data_dir=tmp_path)
    assert dataset.class_names == ("ant", "owl") and dataset.num_classes == 2
    images, labels = dataset.load(True)
    assert images.shape == (5, 3, 64, 64) and images.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [20, 21, 22, 10, 11]
    assert dataset.load(False)[1].tolist() == [0]


def test_val_stands_in_for_test_which_comes_first(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"ant": 1, "owl": 1})
    write_pictures(tmp_path / "val", {"owl": 2})
    assert len(IMAGEFOLDER(data_dir=tmp_path).open(False, 8)) == 2
    write_pictures(tmp_path / "test", {"owl": 3})
    assert len(IMAGEFOLDER(data_dir=tmp_path).open(False, 8)) == 3


def test_the_centre_is_cut_out_after_the_shorter_side_is_resized(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (200, 100, 50)
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(wide).save(tmp_path / "train" / "a" / "wide.png")
    image = IMAGEFOLDER(data_dir=tmp_path).open(True, 10)[0]
    assert image.shape == (3, 10, 10)
    assert image[:, :, 1:-1].amin(dim=(1, 2)).tolist() == image.amax(dim=(1, 2)).tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_every_kind_of_picture_becomes_three_channels(mode: str, tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    ending = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (5, 5), 1 if mode == "1" else None).save(tmp_path / "train" / "a" / f"x.{ending}")
    assert IMAGEFOLDER(data_dir=tmp_path).open(True, 4)[0].shape == (3, 4, 4)


def test_folders_that_cannot_be_used_are_errors_that_name_them(tmp_path: Path) -> None:
    def message(train: bool = True) -> str:
        return usage_error(lambda: IMAGEFOLDER(data_dir=tmp_path).open(train, 8))

    assert "IMAGEFOLDER needs data_dir" in usage_error(lambda: IMAGEFOLDER().open(True, 8))
    assert f"{tmp_path} has no folder train" in message()
    (tmp_path / "train").mkdir()
    assert f"{tmp_path / 'train'} has no class folders" in message()
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").touch()
    assert f"{tmp_path / 'train'} (training part) has no images of ant:" in message()
    write_pictures(tmp_path / "train", {"owl": 1, ".hidden": 1})
    assert "has no images of ant:" in message()
    Image.new("L", (4, 4)).save(tmp_path / "train" / "ant" / "1.png")
    assert len(IMAGEFOLDER(data_dir=tmp_path).open(True, 8)) == 2
    assert f"{tmp_path} has no folder test or val" in message(train=False)
    write_pictures(tmp_path / "val", {"yak": 1, "owl": 1})
    assert f"{tmp_path / 'val'} (test part) has classes that the training part lacks: yak" in message(train=False)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"ant": 2}, size=(50, 50))
    pictures = IMAGEFOLDER(data_dir=tmp_path).open(True, 8)
    for index, content in enumerate((b"", Path(pictures.paths[1]).read_bytes()[:60])):
        Path(pictures.paths[index]).write_bytes(content)
        message = usage_error(functools.partial(pictures.__getitem__, index))
        assert f"cannot read {pictures.paths[index]}:" in message


# ------------------------------------------------------------------------------------------------ torchvision


def test_torchvision_is_imported_once_and_works() -> None:
    package = torchvision()
    assert package is torchvision() is sys.modules["torchvision"]
    assert package.transforms.functional.hflip(torch.arange(3)[None]).tolist() == [[2, 1, 0]]


@pytest.mark.slow
def test_operators_that_exist_already_are_left_alone() -> None:
    program = (
        "import torch\n"
        "library = torch.library.Library('torchvision', 'FRAGMENT')\n"
        "library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "from secateur.utils import vision\n"
        "print(vision.torchvision().__name__)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["torchvision"], result.stderr


def test_reading_the_embedded_set_does_not_import_torchvision() -> None:
    program = ("import sys\nfrom secateur.utils.data.FASHION_MINI import FASHION_MINI\nFASHION_MINI().load(True)\n"
               "print('torchvision' in sys.modules)")  # fmt: skip
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
