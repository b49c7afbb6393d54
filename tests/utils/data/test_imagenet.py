"""ImageNet: its folders, how its images are prepared for training and tests, and whole runs on a made-up set."""

import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from secateur import load_model
from secateur.framework.network.latency import measure_latency
from secateur.framework.network.lineage import lineage_of
from secateur.framework.storage.run_folder import RunFolder
from secateur.main import main
from secateur.utils.data._pictures import Photographs, Pictures, random_box
from secateur.utils.data.IMAGENET import IMAGENET
from secateur.utils.data.IMAGENETTE import IMAGENETTE
from secateur.utils.loading.augment import AUGMENTATIONS, augment, resized_crop
from secateur.utils.loading.batches import BatchLoader, FolderLoader, seeded
from secateur.utils.loading.loaders import make_loaders
from secateur.utils.vision import torchvision
from tests.utils.loading.test_dataset import nowhere_else, usage_error

__all__ = ["nowhere_else"]  # a fixture
WNIDS = ("n01440764", "n02102040", "n03888257")


def noise(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)
    return path


def imagenet(root: Path, name: str = "imagenet", train: int = 6, val: int = 2) -> Path:
    """Made-up images of several shapes, each class in its own range of grey levels, in ImageNet's folders."""
    for part, count in (("train", train), ("val", val)):
        for label, wnid in enumerate(WNIDS):
            for number in range(count):
                path = root / name / part / wnid / f"{wnid}_{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                rng = np.random.default_rng(100 * label + number + 1000 * (part == "val"))
                low = 80 * label
                shape = (40 + 4 * number, 56 - 3 * number, 3)
                Image.fromarray(rng.integers(low, low + 60, shape, dtype=np.uint8)).save(path)
    return root / name


# Folders


def test_sizes_and_classes_are_the_published_ones() -> None:
    assert (IMAGENET.in_channels, IMAGENET.image_size, IMAGENET.num_classes) == (3, 224, 1000)
    assert (IMAGENET.mean, IMAGENET.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", [*IMAGENET.folders, "."])
def test_a_set_is_found_under_its_names_or_as_data_dir_itself(name: str, tmp_path: Path) -> None:
    imagenet(tmp_path, name, train=2, val=1)
    dataset = IMAGENET(data_dir=tmp_path, download=False)
    assert dataset.num_classes == 3 and dataset.class_names == WNIDS
    assert dataset.open(True, 8).targets == [0, 0, 1, 1, 2, 2] and dataset.open(False, 8).targets == [0, 1, 2]
    assert dataset.remarks == (f"IMAGENET: {dataset.root()} has 3 classes, the published set 1000",)


def test_classes_of_the_whole_set_have_their_published_names(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / "train" / f"n{number:08}").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    names = IMAGENET(data_dir=tmp_path).class_names
    assert len(names) == 1000 and (names[0], names[217], names[999]) == (
        "tench",
        "English springer",
        "toilet tissue",
    )
    (tmp_path / "train" / "n00000000").rename(tmp_path / "train" / "mine")
    assert (
        IMAGENET(data_dir=tmp_path).class_names[0] == "mine" or "mine" in IMAGENET(data_dir=tmp_path).class_names
    )


def test_a_set_that_is_nowhere_says_where_it_looked_and_how_to_get_it(tmp_path: Path, nowhere_else: Path) -> None:
    message = usage_error(lambda: IMAGENET(data_dir=tmp_path).open(True, 8))
    assert message.startswith(f"IMAGENET not found: looked in {tmp_path / 'imagenet'}, ")
    assert "ILSVRC2012_img_train.tar" in message and "train/CLASS/*.JPEG and val/CLASS/*.JPEG" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_that_is_missing_is_named(part: str, tmp_path: Path) -> None:
    made = imagenet(tmp_path, train=1, val=1)
    (made / part).rename(made / "other")
    assert f"{made} is incomplete, it lacks {part}" in usage_error(
        lambda: IMAGENET(data_dir=tmp_path).open(True, 8)
    )


# Preparation


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (256, 256), (100, 90), (1000, 60), (224, 301)])
def test_images_are_tested_as_torchvision_prepares_them(size: tuple[int, int], tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", size)
    transforms = torchvision().transforms
    with Image.open(path) as image:
        expected = transforms.CenterCrop(224)(transforms.Resize(256, interpolation=2)(image))
    found = Photographs([(str(path), 0)], 224)[0]
    assert torch.equal(found, torch.from_numpy(np.array(expected)).permute(2, 0, 1))


@pytest.mark.parametrize("size", [1, 7, 32, 112])
def test_other_image_sizes_show_the_same_middle(size: int, tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", (90, 70))
    assert Photographs([(str(path), 0)], size)[0].shape == (3, size, size)
    ramp = np.tile(np.arange(80, dtype=np.uint8), (60, 1))
    Image.fromarray(np.stack([ramp] * 3, -1)).save(path)
    seen = Photographs([(str(path), 0)], size)[0].float()
    if size >= 32:  # half a pixel of less is too much of the image
        # 60 * 224 / 256 = 52.5 of the 80 columns, around 39.5
        assert float(seen.mean()) == pytest.approx(39.5, abs=1)
        assert float(seen.max() - seen.min()) == pytest.approx(52.5, abs=2)


def shares(boxes: Sequence[tuple[int, int, int, int]], width: int, height: int) -> Tensor:
    """Area, logarithm of the ratio and place of each box."""
    left, top, right, bottom = torch.tensor(boxes, dtype=torch.float64).T
    w, h = right - left, bottom - top
    return torch.stack([w * h / width / height, (w / h).log(), (left + w / 2) / width, (top + h / 2) / height])


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (1000, 200)])
def test_random_pieces_are_distributed_as_those_of_torchvision(width: int, height: int) -> None:
    """Means and deviations of area, ratio and place over 4,000 draws of both."""
    torch.manual_seed(0)
    params = torchvision().transforms.RandomResizedCrop.get_params
    blank = torch.empty(3, height, width)
    theirs = [params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    expected = shares([(left, top, left + w, top + h) for top, left, h, w in theirs], width, height)
    boxes = [random_box(width, height, random.Random(seed)) for seed in range(4000)]
    found = shares(boxes, width, height)
    assert all(0 <= a < c <= width and 0 <= b < d <= height for a, b, c, d in boxes)
    torch.testing.assert_close(found.mean(1), expected.mean(1), rtol=0, atol=0.015)
    torch.testing.assert_close(found.std(1), expected.std(1), rtol=0, atol=0.01)


def test_an_image_too_long_for_any_piece_gives_its_middle() -> None:
    assert random_box(3000, 30, random.Random(0)) == (1480, 0, 1520, 30)
    assert random_box(30, 3000, random.Random(0)) == (0, 1480, 30, 1520)
    assert random_box(1, 1, random.Random(0)) == (0, 0, 1, 1)


def test_a_piece_is_cut_out_of_the_file_with_all_its_pixels(tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", (200, 160))
    files = Pictures([(str(path), 0)], 16)
    box = random_box(200, 160, random.Random(5))
    with Image.open(path) as image:
        expected = torchvision().transforms.functional.resized_crop(
            image, box[1], box[0], box[3] - box[1], box[2] - box[0], [16, 16], interpolation=2
        )
    found = files.cropped(0, 5)
    assert torch.equal(found, torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert torch.equal(found, files.cropped(0, 5)) and not torch.equal(found, files.cropped(0, 6))


def made_loader(tmp_path: Path, **options: object) -> BatchLoader:
    imagenet(tmp_path)
    wanted: dict[str, object] = {"batch_size": 4, "seed": 3, "image_size": 16, "workers": 0, "normalize": "unit",
                                 "augment": "resized_crop_flip", **options}  # fmt: skip
    return make_loaders(IMAGENET(data_dir=tmp_path), **wanted).train  # type: ignore[arg-type]


def epochs(loader: BatchLoader, count: int = 2) -> list[list[tuple[Tensor, Tensor]]]:
    return [list(loader) for _ in range(count)]


def test_training_pieces_depend_on_seed_and_epoch_and_not_on_the_workers(tmp_path: Path) -> None:
    plain = epochs(made_loader(tmp_path))
    for other in (made_loader(tmp_path, workers=1), made_loader(tmp_path)):
        for ours, theirs in zip(plain, epochs(other), strict=True):
            for (x, y), (same, label) in zip(ours, theirs, strict=True):
                assert torch.equal(x, same) and torch.equal(y, label)
    first, second = (torch.cat([x for x, _ in epoch]).flatten(1).sum(1).sort().values for epoch in plain)
    assert not torch.equal(first, second)  # other pieces, not only another order
    another = epochs(made_loader(tmp_path, seed=4))
    assert not torch.equal(another[0][0][0], plain[0][0][0])


def test_a_limited_epoch_is_the_beginning_of_the_whole_one(tmp_path: Path) -> None:
    (whole,), (part,) = epochs(made_loader(tmp_path), 1), epochs(made_loader(tmp_path, limit_train_batches=2), 1)
    assert len(part) == 2 < len(whole)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(part, whole, strict=False))


def test_validation_tests_and_scoring_see_the_middle_of_the_images(tmp_path: Path) -> None:
    imagenet(tmp_path)
    dataset = IMAGENET(data_dir=tmp_path)
    loaders = make_loaders(dataset, batch_size=50, seed=0, image_size=16, workers=0, normalize="unit",
                           val_share=0.4, augment="resized_crop_flip")  # fmt: skip
    assert loaders.val is not None
    for loader, train in ((loaders.val, True), (loaders.test, False)):
        ((images, targets),) = list(loader)
        files = dataset.open(train, 16)
        known = {(files.targets[i], files[i].numpy().tobytes()) for i in range(len(files))}
        assert all((int(y), (x * 255).round().byte().numpy().tobytes()) in known
                   for x, y in zip(images, targets, strict=True))  # fmt: skip
    files = dataset.open(True, 16)
    squares = {files[i].numpy().tobytes() for i in range(len(files))}
    wanted = dict(batches=None, samples=6, batch_size=6, seed=1, step=0)
    ((images, _),) = loaders.scoring_batches("balanced", **wanted)  # type: ignore[arg-type]
    assert all((x * 255).round().byte().numpy().tobytes() in squares for x in images)


def test_labels_go_with_their_images_when_pieces_are_cut(tmp_path: Path) -> None:
    for images, targets in made_loader(tmp_path, batch_size=5):
        assert torch.equal((images.mean((1, 2, 3)) * 255 / 80).long(), targets)


def test_other_folders_of_images_are_cut_from_their_files_too(tmp_path: Path) -> None:
    imagenet(tmp_path, "imagenette2-320")
    loaders = make_loaders(IMAGENETTE(data_dir=tmp_path), batch_size=4, seed=0, image_size=16, workers=0,
                           augment="resized_crop_flip")  # fmt: skip
    assert isinstance(loaders.train, FolderLoader) and loaders.train.cuts_files


# Pieces of images in memory


def test_pieces_of_images_in_memory_show_what_bilinear_interpolation_of_the_box_shows() -> None:
    """A ramp stays a ramp: its ends give the box, which must lie inside and have the allowed area and ratio."""
    size = 64
    across = torch.arange(size, dtype=torch.float64).expand(500, 1, size, size)
    seen = resized_crop(torch.cat([across, across.transpose(2, 3)], 1), seeded("a"))
    middle = slice(size // 4, 3 * size // 4)
    steps = seen[:, 0, 0, middle].diff(dim=-1), seen[:, 1, middle, 0].diff(dim=-1)
    w, h = (step.mean(-1) for step in steps)
    assert all(float((step - mean[:, None]).abs().max()) < 1e-9 for step, mean in zip(steps, (w, h), strict=True))
    area, ratio = w * h, (w / h).log()
    assert 0.08 <= float(area.min()) < 0.12 and 0.9 < float(area.max()) <= 1
    assert float(ratio.abs().max()) <= np.log(4 / 3) + 1e-9 and float(ratio.abs().max()) > 0.25
    assert float(seen.min()) >= 0 and float(seen.max()) <= size - 1


def test_pieces_in_memory_are_distributed_as_those_of_torchvision() -> None:
    size = 32
    across = torch.arange(size, dtype=torch.float64).expand(4000, 1, size, size)
    seen = resized_crop(torch.cat([across, across.transpose(2, 3)], 1), seeded("b"))
    w, h = seen[:, 0, 0, 12:20].diff(dim=-1).mean(-1), seen[:, 1, 12:20, 0].diff(dim=-1).mean(-1)
    torch.manual_seed(0)
    params = torchvision().transforms.RandomResizedCrop.get_params
    theirs = [params(torch.empty(3, 1000, 1000), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    area = torch.tensor([a * b for _, _, a, b in theirs], dtype=torch.float64) / 1e6
    ratio = torch.tensor([b / a for _, _, a, b in theirs], dtype=torch.float64).log()
    for found, expected in ((w * h, area), ((w / h).log(), ratio)):
        assert float(found.mean()) == pytest.approx(float(expected.mean()), abs=0.015)
        assert float(found.std()) == pytest.approx(float(expected.std()), abs=0.01)


def test_the_steps_of_the_augmentation_keep_type_and_shape() -> None:
    for kind in (torch.uint8, torch.float32):
        given = (torch.rand(5, 3, 9, 12, generator=seeded("c")) * 255).to(kind)
        found = augment(given, "resized_crop_flip", seeded("d"))
        assert found.shape == given.shape and found.dtype == kind and not torch.equal(found, given)
    assert [step.__name__ for step in AUGMENTATIONS["resized_crop_flip"]] == ["resized_crop", "flip"]


# Whole runs


def launch(*arguments: str, code: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == code


@pytest.mark.slow
def test_a_network_of_torchvision_is_pruned_trained_saved_and_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imagenet(tmp_path / "sets")
    theirs = torchvision().models.resnet18(num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "secateur.framework.reporting.report.measure_latency",
        functools.partial(measure_latency, repeats=1, warmup=0),
    )
    base = ["--model", "TorchvisionModel", "--arch", "resnet18", "--data_set", "IMAGENET", "--data_dir", "sets",
            "--image_size", "32", "--batch_size", "4", "--threads", "1", "--workers", "0",
            "--plot_weights_freq", "0", "--memory_format", "contiguous"]  # fmt: skip
    launch(*base, "--pretrained", "weights.pth", code=2)
    refused = capsys.readouterr().err
    assert all(part in refused for part in ("'fc.weight' has 7 outputs", " 3 ", "--new_head"))
    assert refused.count("\n") == 1
    assert not (tmp_path / "results").exists()
    launch(*base, "--pretrained", "weights.pth", "--new_head", "--prune_criterion", "ChannelNorm", "--schedule",
           "before", "--pruning_limit", "0.5", "--epochs", "1", "--limit_train_batches", "2")  # fmt: skip
    folder = RunFolder(capsys.readouterr().out.splitlines()[-1])
    config = folder.read_config()
    assert config is not None and config.augment == "resized_crop_flip" and config.num_classes == 3
    log = folder.log.read_text()
    assert "the published set 1000" in log and 'augment = "resized_crop_flip" (by IMAGENET)' in log
    report = json.loads(folder.report.read_text())
    assert report["reached"]["node_sparsity"] == pytest.approx(0.5, abs=0.01)
    model = load_model(folder.checkpoint("TorchvisionModel"))
    assert lineage_of(model).options["arch"] == "resnet18"
    assert sum(p.numel() for p in model.parameters()) == report["pruned"]["params"] < 5e6
    launch("--eval", "--model", "TorchvisionModel", "--threads", "1", "--workers", "0")
    again = RunFolder(capsys.readouterr().out.splitlines()[-1])
    accuracy = json.loads(again.report.read_text())["accuracy"]
    assert accuracy == report["pruned"]["accuracy"]
    launch("--eval", "--model", "TorchvisionModel", "--arch", "resnet34", code=2)
    assert "was saved with arch resnet18, but this data set or command needs resnet34" in capsys.readouterr().err
