"""Published sets of image files: made-up folders of the same layout, found, read and refused."""

import functools
import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.framework.network.latency import measure_latency
from secateur.framework.storage.run_folder import RunFolder
from secateur.main import main
from secateur.utils.data._class_folders import PublishedFolders
from secateur.utils.data.IMAGENETTE import IMAGENETTE
from secateur.utils.data.IMAGEWOOF import IMAGEWOOF
from secateur.utils.data.OMNIGLOT import OMNIGLOT
from secateur.utils.data.TINYIMAGENET import TINYIMAGENET
from secateur.utils.loading.batches import FolderLoader, TensorLoader
from secateur.utils.loading.loaders import make_loaders
from secateur.utils.vision import torchvision
from tests.utils.loading.test_dataset import Server, nowhere_else, server, usage_error

__all__ = ["nowhere_else", "server"]  # fixtures
WNIDS = ("n01440764", "n02102040", "n03888257")
TINY = "tiny-imagenet-200"


def picture(path: Path, level: int, size: tuple[int, int] = (12, 9), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (level,) * 3 if mode == "RGB" else level).save(path)


def imagenette(root: Path, name: str = "imagenette2-320", train: int = 4, val: int = 2) -> Path:
    """Class k's images have the grey level 20 * (k + 1), plus one in the validation part."""
    for part, count, more in (("train", train, 0), ("val", val, 1)):
        for label, wnid in enumerate(WNIDS):
            for number in range(count):
                picture(root / name / part / wnid / f"{wnid}_{number}.JPEG", 20 * (label + 1) + more)
    return root / name


def tiny(root: Path, plain: bool = False) -> Path:
    """The archive's layout, or plain class folders."""
    folder = root / TINY
    rows = []
    for label, wnid in enumerate(WNIDS):
        for number in range(3):
            inner = "" if plain else "images"
            picture(folder / "train" / wnid / inner / f"{wnid}_{number}.JPEG", 20 * (label + 1))
        name = f"val_{2 - label}.JPEG"  # the order of names is not that of the classes
        picture(folder / "val" / (wnid if plain else "images") / name, 20 * (label + 1) + 1)
        rows.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    if not plain:
        (folder / "val" / "val_annotations.txt").write_text("".join(rows))
        (folder / "words.txt").write_text(f"{WNIDS[0]}\ttench, Tinca tinca\n{WNIDS[1]}\tspringer\n")
        picture(folder / "test" / "images" / "test_0.JPEG", 0)
    return folder


def omniglot(root: Path, alphabets: Sequence[str] = ("Greek", "Korean"), drawers: int = 20) -> Path:
    """Two characters in each of the alphabets, the last alphabet in the evaluation part."""
    folder = root / "omniglot-py"
    for place, alphabet in enumerate(alphabets):
        part = "images_evaluation" if place == len(alphabets) - 1 else "images_background"
        for character in (1, 2):
            for drawer in range(1, drawers + 1):
                level = 40 * place + 20 * character + drawer
                name = f"{place:02}{character:02}_{drawer:02}.png"
                path = folder / part / alphabet / f"character{character:02}" / name
                picture(path, level, (105, 105), "L")
    return folder


MAKE: dict[type[PublishedFolders], Callable[[Path], Path]] = {
    IMAGENETTE: imagenette,
    IMAGEWOOF: functools.partial(imagenette, name="imagewoof2-320"),
    TINYIMAGENET: tiny,
    OMNIGLOT: omniglot,
}
KINDS = list(MAKE)


# ------------------------------------------------------------------------------------------------ where and what


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_channels_and_classes_of_the_published_sets(kind: type[PublishedFolders]) -> None:
    expected = {"OMNIGLOT": (1, 105, 1623), "TINYIMAGENET": (3, 128, 200)}.get(kind.__name__, (3, 128, 10))
    assert (kind.in_channels, kind.image_size, kind.num_classes) == expected
    assert kind().num_classes == expected[2]  # nothing is there yet


@pytest.mark.parametrize("kind", [IMAGENETTE, IMAGEWOOF, TINYIMAGENET])
@pytest.mark.parametrize("directly", [False, True])
def test_a_set_is_found_under_each_of_its_names_or_as_data_dir_itself(
    kind: type[PublishedFolders], directly: bool, tmp_path: Path
) -> None:
    made = MAKE[kind](tmp_path)
    for name in kind.folders:
        made = made.rename(tmp_path / name)
        dataset = kind(data_dir=made if directly else tmp_path, download=False)
        assert dataset.root() == made
        assert len(dataset.open(True, 8)) > 0


def test_data_dir_comes_before_the_download_folder(tmp_path: Path, nowhere_else: Path) -> None:
    usual = imagenette(nowhere_else / "data", "imagenette2-160")
    assert (nowhere_else / str(IMAGENETTE().root())) == usual
    assert IMAGENETTE(data_dir=tmp_path).root() == Path("data/imagenette2-160")
    mine = imagenette(tmp_path, "imagenette")
    assert IMAGENETTE(data_dir=tmp_path).root() == mine


def test_labels_are_positions_among_the_sorted_class_folders_in_both_parts(tmp_path: Path) -> None:
    imagenette(tmp_path)
    dataset = IMAGENETTE(data_dir=tmp_path)
    assert dataset.num_classes == 3 and dataset.class_names == ("tench", "English springer", "parachute")
    for train, each, more in ((True, 4, 0), (False, 2, 1)):
        images, labels = dataset.load(train)
        assert images.shape == (3 * each, 3, 128, 128) and images.dtype == torch.uint8
        assert labels.tolist() == [label for label in range(3) for _ in range(each)]
        assert (images[:, 0, 0, 0].int() - 20 * (labels + 1) - more).abs().max() <= 2  # JPEG


def test_a_folder_with_fewer_classes_than_published_is_used_and_told(tmp_path: Path) -> None:
    imagenette(tmp_path)
    made = make_loaders(IMAGENETTE(data_dir=tmp_path), batch_size=4, seed=0, image_size=8, workers=0)
    assert made.num_classes == 3 and made.image_size == 8
    assert made.remarks == (f"IMAGENETTE: {tmp_path / 'imagenette2-320'} has 3 classes, the published set 10",)


def test_the_archive_of_tiny_imagenet_and_plain_folders_say_the_same(tmp_path: Path) -> None:
    tiny(tmp_path / "archive")
    tiny(tmp_path / "plain", plain=True)
    archive, plain = (TINYIMAGENET(data_dir=tmp_path / name) for name in ("archive", "plain"))
    assert archive.class_names == ("tench", "springer", WNIDS[2])
    assert plain.class_names == WNIDS
    for train in (True, False):
        (images, labels), (others, same) = archive.load(train), plain.load(train)
        assert torch.equal(images, others) and torch.equal(labels, same)
        assert labels.tolist() == ([0, 0, 0, 1, 1, 1, 2, 2, 2] if train else [0, 1, 2])
        assert (images[:, 0, 5, 5].int() - 20 * (labels + 1)).abs().max() <= 2
    assert len(archive.open(False, 8)) == 3  # the unlabelled images of test/ are nobody's


def test_omniglot_tests_on_other_drawings_of_the_characters_it_was_trained_on(tmp_path: Path) -> None:
    omniglot(tmp_path)
    dataset = OMNIGLOT(data_dir=tmp_path)
    assert dataset.num_classes == 4
    assert dataset.class_names == tuple(f"{a}/character{c:02}" for a in ("Greek", "Korean") for c in (1, 2))
    (images, labels), (others, tested) = dataset.load(True), dataset.load(False)
    assert images.shape == (64, 1, 105, 105) and others.shape == (16, 1, 105, 105)
    assert torch.bincount(labels).tolist() == [16] * 4 and torch.bincount(tested).tolist() == [4] * 4
    start = torch.tensor([20, 40, 60, 80])
    drawers = {train: set((x[:, 0, 0, 0] - start[y]).tolist()) for train, x, y in
               ((True, images, labels), (False, others, tested))}  # fmt: skip
    assert drawers[False] == {5, 10, 15, 20}
    assert drawers[True] == set(range(1, 21)) - drawers[False]


def test_omniglots_mean_and_deviation_are_those_of_black_on_white() -> None:
    assert OMNIGLOT.std[0] == pytest.approx((OMNIGLOT.mean[0] * (1 - OMNIGLOT.mean[0])) ** 0.5, abs=5e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_test_images_are_never_flipped(kind: type[PublishedFolders], tmp_path: Path) -> None:
    made = MAKE[kind](tmp_path)
    rows = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (120, 1))  # brighter to the right
    for path in [*made.rglob("*.JPEG"), *made.rglob("*.png")]:
        Image.fromarray(rows).save(path)
    loaders = make_loaders(kind(data_dir=tmp_path), batch_size=32, seed=0, image_size=24, workers=0,
                           augment="flip", normalize="unit")  # fmt: skip
    for images, _ in [*loaders.test, *loaders.test]:
        assert bool((images[..., -1] > images[..., 0]).all())
    train = torch.cat([images for images, _ in [*loaders.train, *loaders.train]])
    flipped = (train[..., -1] < train[..., 0]).float().mean()
    assert 0 < float(flipped) < 1  # the check above can fail


# --------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_that_is_nowhere_is_one_line_with_places_and_layout(
    kind: type[PublishedFolders], tmp_path: Path, nowhere_else: Path
) -> None:
    message = usage_error(lambda: kind(data_dir=tmp_path, download=False).open(True, 8))
    assert message.startswith(f"{kind.__name__} not found: looked in {tmp_path / kind.folders[0]}, ")
    assert f"data/{kind.folders[0]}" in message and kind.layout in message and "data_dir" in message
    known = {IMAGEWOOF: "imagewoof2-320.tgz", TINYIMAGENET: "tiny-imagenet-200.zip"}
    assert known.get(kind, "downloading is switched off") in message
    assert not list(tmp_path.iterdir()) and not list(nowhere_else.iterdir())


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("kind", [IMAGENETTE, IMAGEWOOF, TINYIMAGENET])
def test_a_part_that_is_missing_is_named(kind: type[PublishedFolders], part: str, tmp_path: Path) -> None:
    made = MAKE[kind](tmp_path)
    shutil.rmtree(made / part)
    assert f"{made} is incomplete, it lacks {part}: " in usage_error(lambda: kind(data_dir=tmp_path).open(True, 8))


def loaded(kind: type[PublishedFolders], folder: Path) -> Any:
    return make_loaders(kind(data_dir=folder), batch_size=4, seed=0, image_size=8, workers=0)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("left", ["nothing", "an empty folder", "no image"])
@pytest.mark.parametrize("kind", [IMAGENETTE, IMAGEWOOF])
def test_a_class_without_images_in_one_part_is_named(
    kind: type[PublishedFolders], part: str, left: str, tmp_path: Path
) -> None:
    made = MAKE[kind](tmp_path)
    gone = made / part / WNIDS[1]
    shutil.rmtree(gone)
    if left != "nothing":
        gone.mkdir()
    if left == "no image":
        (gone / "notes.txt").touch()
        (gone / "._hidden.JPEG").touch()
    message = usage_error(lambda: loaded(kind, tmp_path))
    assert WNIDS[1] in message and str(made) in message
    assert WNIDS[0] not in message and WNIDS[2] not in message


def test_what_tiny_imagenets_annotations_and_files_disagree_about_is_named(tmp_path: Path) -> None:
    made = tiny(tmp_path)
    notes = made / "val" / "val_annotations.txt"
    before = notes.read_text()
    first = before.splitlines(keepends=True)[0]
    image = made / "val" / "images" / first.split("\t")[0]

    def message() -> str:
        return usage_error(lambda: loaded(TINYIMAGENET, tmp_path))

    notes.write_text(before.replace(first, ""))
    assert f"{image} has no line in {notes}" in message()
    notes.write_text(before.replace(first, first.replace(WNIDS[0], "n99999999")))
    assert "has classes that the training part lacks: n99999999" in message()
    notes.write_text(before.replace(first, first.replace(WNIDS[0], WNIDS[1])))
    assert f"no images of {WNIDS[0]}:" in message()
    notes.write_text("val_0.JPEG\n")
    assert f"cannot read {notes}: line 1 has no second column" in message()
    notes.write_bytes(b"\xff\xfe\x00")
    assert f"{notes} is not text in UTF-8" in message()
    notes.write_text(before)
    image.unlink()
    assert f"{image} is missing" in message() and "val_annotations.txt" in message()


def test_what_is_wrong_with_an_omniglot_folder_is_named(tmp_path: Path) -> None:
    made = omniglot(tmp_path)
    place = made / "images_background" / "Greek" / "character01"

    def message() -> str:
        return usage_error(lambda: loaded(OMNIGLOT, tmp_path))

    picture(place / "drawing.png", 3)
    assert f"{place / 'drawing.png'} is not named" in message()
    (place / "drawing.png").unlink()
    for drawing in place.glob("*[05].png"):
        drawing.unlink()
    assert "(test part) has no images of Greek/character01:" in message()
    shutil.rmtree(place)
    place.mkdir()
    assert "(training part) has no images of Greek/character01:" in message()
    shutil.copytree(made / "images_evaluation" / "Korean", made / "images_background" / "Korean")
    assert "Korean/character01 is in both parts" in message()
    shutil.rmtree(made / "images_evaluation")
    assert "is incomplete, it lacks images_evaluation:" in message()


@pytest.mark.parametrize("preload", [False, True])
def test_a_file_that_is_no_image_is_named(preload: bool, tmp_path: Path) -> None:
    made = imagenette(tmp_path)
    bad = made / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG"
    bad.write_bytes(b"no picture")

    def read() -> None:
        found = make_loaders(IMAGENETTE(data_dir=tmp_path), batch_size=4, seed=0, image_size=8, workers=0,
                             val_share=0, preload=preload)  # fmt: skip
        list(found.train)

    assert usage_error(read).startswith(f"cannot read {bad}: damaged")


# -------------------------------------------------------------------------------------------------------- download


def test_imagenette_is_downloaded_once_and_found_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    imagenette(tmp_path / "source")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(tmp_path / "source" / "imagenette2-320", "imagenette2-320")
    reader = torchvision().datasets.Imagenette
    address = (f"{server.url}imagenette2-320.tgz", hashlib.md5(packed.getvalue()).hexdigest())
    monkeypatch.setattr(reader, "_ARCHIVES", {**reader._ARCHIVES, "320px": address})
    server.files["/imagenette2-320.tgz"] = packed.getvalue()
    root = tmp_path / "new"
    images, _ = IMAGENETTE(data_dir=root).load(True)
    assert len(images) == 12
    assert [path.name for path in root.iterdir()] == ["imagenette2-320"]
    assert capfd.readouterr() == ("", "")
    server.files.clear()
    assert torch.equal(IMAGENETTE(data_dir=root).load(True)[0], images)


@pytest.mark.parametrize("damaged", [False, True])
def test_omniglot_is_downloaded_whole_or_not_at_all(
    damaged: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = omniglot(tmp_path / "source", drawers=5)
    sums = {}
    for part in OMNIGLOT.needs:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for file in (source / part).rglob("*.png"):
                archive.write(file, file.relative_to(source))
        content = packed.getvalue()
        sums[part] = hashlib.md5(content).hexdigest()
        server.files[f"/{part}.zip"] = content[:-9] if damaged and part == "images_evaluation" else content
    reader = torchvision().datasets.Omniglot
    monkeypatch.setattr(reader, "zips_md5", sums)
    monkeypatch.setattr(reader, "download_url_prefix", server.url.rstrip("/"))
    root = tmp_path / "new"
    if damaged:
        assert "download failed (" in usage_error(lambda: OMNIGLOT(data_dir=root).open(True, 8))
        assert not root.exists()
        return
    images, labels = OMNIGLOT(data_dir=root).load(True)
    assert len(images) == 16 and labels.max() == 3
    assert sorted(path.name for path in (root / "omniglot-py").iterdir()) == list(OMNIGLOT.needs)


# ---------------------------------------------------------------------------------------------------- in memory


@pytest.mark.parametrize("workers", [0, 1])
def test_images_held_in_memory_give_the_batches_that_files_give(workers: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 7), ("val", 3)):
        for wnid in WNIDS:
            for number in range(count):
                path = tmp_path / "imagenette" / part / wnid / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (14, 11, 3), dtype=np.uint8)).save(path)
    files, held = (
        make_loaders(IMAGENETTE(data_dir=tmp_path), batch_size=4, seed=3, image_size=9, augment="crop_flip",
                     random_shuffle_labels=True, workers=workers, preload=preload)
        for preload in (False, True)
    )  # fmt: skip
    for part in ("train", "val", "test"):
        one, two = getattr(files, part), getattr(held, part)
        assert isinstance(one, FolderLoader) and isinstance(two, TensorLoader)
        for _ in range(2):
            for (x, y), (same, label) in zip(one, two, strict=True):
                assert torch.equal(x, same) and torch.equal(y, label)
    wanted: dict[str, Any] = dict(batches=None, samples=6, batch_size=3, seed=1, step=0)
    for (x, y), (same, label) in zip(
        *(m.scoring_batches("balanced", **wanted) for m in (files, held)), strict=True
    ):
        assert torch.equal(x, same) and torch.equal(y, label)


def test_more_images_than_fit_into_memory_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagenette(tmp_path)
    monkeypatch.setattr("secateur.utils.memory.memory_bytes", lambda: 100)
    dataset = IMAGENETTE(data_dir=tmp_path)
    message = usage_error(lambda: make_loaders(dataset, batch_size=4, seed=0, workers=0, preload=True))
    assert message.startswith("preload_all_data: IMAGENETTE needs 0.0 GiB of memory")


# --------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind in (OMNIGLOT, IMAGENETTE) else pytest.mark.slow) for kind in KINDS],
)
def test_a_run_by_command_line_trains_prunes_and_tests(
    kind: type[PublishedFolders],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    MAKE[kind](tmp_path / "sets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "secateur.framework.reporting.report.measure_latency",
        functools.partial(measure_latency, repeats=1, warmup=0),
    )
    command = (
        f"--data_set {kind.__name__} --data_dir sets --model LeNet5 --prune_criterion SNAP --epochs 1 "
        "--batch_size 4 --limit_train_batches 2 --limit_test_batches 1 --image_size 32 --threads 1 --workers 1 "
        "--val_share 0.3 --plot_weights_freq 0 --memory_format contiguous"
    )
    preload = ["--preload_all_data"] if kind in (IMAGENETTE, OMNIGLOT) else []
    assert main([*command.split(), *preload]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = RunFolder(tmp_path / lines[-1])
    config = folder.read_config()
    assert config is not None and config.num_classes == (4 if kind is OMNIGLOT else 3)
    assert f"the published set {kind.published}" in folder.log.read_text()
    assert folder.report.is_file()
    assert main(["--eval", "--model", "LeNet5", "--limit_test_batches", "1", "--threads", "1"]) == 0


def test_a_damaged_set_ends_a_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = imagenette(tmp_path)
    shutil.rmtree(made / "val" / WNIDS[2])
    monkeypatch.chdir(tmp_path)
    assert main(["--data_set", "IMAGENETTE", "--data_dir", str(tmp_path), "--image_size", "32"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: IMAGENETTE: {made / 'val'} (test part) has no images of {WNIDS[2]}:")
    assert shown.err.count("\n") == 1 and not (tmp_path / "results").exists()
