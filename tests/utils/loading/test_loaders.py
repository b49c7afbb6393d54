"""Batches: the same for the same seed, complete, normalised, split without overlap."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from secateur.utils.data.FASHION import FASHION
from secateur.utils.data.FASHION_MINI import FASHION_MINI
from secateur.utils.data.IMAGEFOLDER import IMAGEFOLDER
from secateur.utils.errors import UsageError
from secateur.utils.loading import loaders as module
from secateur.utils.loading.augment import augment
from secateur.utils.loading.batches import BatchLoader, FolderLoader, TensorLoader
from secateur.utils.loading.dataset import CheckedFiles, DataSet, FolderDataSet
from secateur.utils.loading.loaders import Loaders, make_loaders, resized, split

UNIT = {"mean": (0.0,), "std": (1.0,)}


def numbered_images(count: int, side: int = 6) -> Tensor:
    """Return uint8 images (count, 1, side, side) that bear their position in the two upper left pixels."""
    images = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=module.seeded("images"))
    positions = torch.arange(count)
    images[:, 0, 0, 0] = (positions % 256).to(torch.uint8)
    images[:, 0, 0, 1] = (positions // 256).to(torch.uint8)
    return images


def positions(inputs: Tensor) -> list[int]:
    """Return the positions that numbered images bear, from inputs normalised with UNIT."""
    pixels = (inputs[:, 0, 0, :2] * 255).round().long()
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


class Numbered(DataSet):
    """Numbered images of 5 classes: 100 for training (positions 0..99), 40 for testing (200..239)."""

    in_channels, num_classes, image_size = 1, 5, 6
    mean, std = (0.25,), (0.5,)
    class_names = ("a", "b", "c", "d", "e")
    sizes = {True: 100, False: 40}

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        images = numbered_images(self.sizes[True]) if train else numbered_images(200 + self.sizes[False])[200:]
        return images, torch.arange(len(images)) % self.num_classes


class InFiles(FolderDataSet):
    """The images of `Numbered`, three channels, one at a time."""

    in_channels, num_classes, mean, std = 3, 5, (0.0,) * 3, (1.0,) * 3
    image_size = 6

    def open(self, train: bool, image_size: int) -> "Files":
        return Files(*Numbered().load(train))


class Files:
    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images = images.expand(-1, 3, -1, -1)
        self.targets = targets.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def tensor_loader(count: int = 23, **options: Any) -> TensorLoader:
    settings: dict[str, Any] = {"batch_size": 4, **UNIT, **options}
    return TensorLoader(numbered_images(count), torch.arange(count) % 5, **settings)


def numbered_loaders(**options: Any) -> Any:
    settings: dict[str, Any] = {"batch_size": 8, "seed": 1, "normalize": "unit", **options}
    return make_loaders(Numbered(), **settings)


def equal(first: Iterable[tuple[Tensor, Tensor]], second: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Return whether two sequences of batches are the same, bit for bit."""
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True)
    )


def seen(loader: BatchLoader) -> list[int]:
    return [position for inputs, _ in loader for position in positions(inputs)]


def usage_error(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# ----------------------------------------------------------------------------------------------- TensorLoader


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40), batch_size=st.integers(1, 12), train=st.booleans(),
    limit=st.none() | st.integers(1, 9),
)  # fmt: skip
def test_an_epoch_has_every_sample_once_in_full_batches(
    count: int, batch_size: int, train: bool, limit: int | None
) -> None:
    loader = tensor_loader(count, batch_size=batch_size, train=train, limit=limit)
    batches = list(loader)
    assert len(batches) == len(loader) and loader.num_samples == count
    found = [position for inputs, _ in batches for position in positions(inputs)]
    assert len(set(found)) == len(found)
    for inputs, targets in batches:
        assert (targets == torch.tensor(positions(inputs)) % 5).all()
        assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
    sizes = [batch_size] * (count // batch_size) + ([count % batch_size] if count % batch_size else [])
    if train and len(sizes) > 1 and batch_size > 1 and sizes[-1] == 1:
        sizes = sizes[:-1]
    assert [len(targets) for _, targets in batches] == sizes[:limit]
    if not train:
        assert found == list(range(len(found)))


def test_a_single_last_training_sample_is_dropped_and_an_only_sample_is_not() -> None:
    assert [len(y) for _, y in tensor_loader(9, train=True)] == [4, 4]
    assert [len(y) for _, y in tensor_loader(9)] == [4, 4, 1]
    assert [len(y) for _, y in tensor_loader(3, train=True, batch_size=1)] == [1, 1, 1]
    assert [len(y) for _, y in tensor_loader(1, train=True)] == [1]


def test_the_same_seed_gives_the_same_epochs_and_another_seed_others() -> None:
    first, again, other = (tensor_loader(train=True, augment="cutout", seed=seed) for seed in (7, 7, 8))
    epochs = [list(first) for _ in range(3)]
    for epoch in epochs:
        assert equal(epoch, again)
    assert not equal(epochs[0], other)
    assert not equal(epochs[0], epochs[1]) and not equal(epochs[1], epochs[2])


def test_setting_the_epoch_continues_there() -> None:
    loader, resumed = (tensor_loader(train=True, augment="crop_flip", seed=7) for _ in range(2))
    assert loader.epoch == 0
    list(loader), list(loader)
    assert loader.epoch == 2
    third, fourth = list(loader), list(loader)
    resumed.epoch = 2
    assert equal(third, resumed) and equal(fourth, resumed)
    assert resumed.epoch == 4


def test_an_epoch_left_early_counts_and_the_next_one_is_complete() -> None:
    loader, whole = tensor_loader(train=True, seed=3), tensor_loader(train=True, seed=3)
    next(iter(loader))
    list(whole)
    assert equal(loader, whole)


@pytest.mark.parametrize("name", ["none", "cutout_rotate"])
def test_the_global_random_state_is_neither_read_nor_changed(name: str) -> None:
    loader = tensor_loader(train=True, augment=name)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    epoch = list(loader)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    loader.epoch = 0
    assert equal(epoch, loader)


def test_a_limit_gives_the_first_batches_of_the_same_order() -> None:
    full, short = tensor_loader(train=True, seed=5), tensor_loader(train=True, seed=5, limit=2)
    assert equal(list(full)[:2], short)


def test_training_batches_are_the_augmented_images_normalised() -> None:
    loader = tensor_loader(augment="crop_flip", train=True, seed=9, mean=(0.25,), std=(0.5,))
    draws = module.seeded("epoch", 9, 0)
    order = torch.randperm(23, generator=draws)
    for chunk, (inputs, _) in zip(order.split(4), loader, strict=True):
        expected = augment(loader.images[chunk], "crop_flip", draws).float() / 255
        torch.testing.assert_close(inputs, (expected - 0.25) / 0.5)


def test_augmentation_is_for_training_only() -> None:
    assert seen(tensor_loader(augment="cutout_rotate")) == list(range(23))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_batches_come_in_the_memory_format_asked_for(form: torch.memory_format) -> None:
    images = torch.randint(0, 256, (9, 3, 5, 5), dtype=torch.uint8)
    loader = TensorLoader(images, torch.zeros(9).long(), batch_size=4, mean=(0,) * 3, std=(1,) * 3)
    expected = list(loader)
    assert loader.memory_format == torch.contiguous_format
    loader.memory_format = form
    assert equal(expected, loader)
    assert all(inputs.is_contiguous(memory_format=form) for inputs, _ in loader)


def test_batches_share_no_memory_with_the_set_or_each_other() -> None:
    loader = tensor_loader()
    before = list(loader)
    for inputs, targets in loader:
        inputs.zero_(), targets.zero_()
    assert equal(before, loader)


def test_unit_normalisation_leaves_pixels_in_0_1_exactly() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    ((inputs, _),) = TensorLoader(images, torch.zeros(256).long(), batch_size=256, **UNIT)
    assert torch.equal(inputs.flatten(), torch.arange(256, dtype=torch.float32) / 255)


@pytest.mark.parametrize(("options", "words"), [
    ({"batch_size": 0}, "batch_size must be"), ({"limit": 0}, "limit must be"),
    ({"augment": "flop"}, "did you mean 'flip'"),
])  # fmt: skip
def test_impossible_loaders_are_usage_errors(options: dict, words: str) -> None:
    assert words in usage_error(lambda: tensor_loader(**options))


# ----------------------------------------------------------------------------------------------- make_loaders


@pytest.mark.parametrize(("dataset", "sizes"), [(FASHION_MINI(), (5400, 600, 2000)),
                                                (FASHION(download=False), (54000, 6000, 10000))])  # fmt: skip
def test_sizes_of_the_parts_are_exact(dataset: DataSet, sizes: tuple[int, int, int]) -> None:
    if dataset.name == "FASHION" and not FASHION.system_folders[0].exists():
        pytest.skip(f"the full Fashion-MNIST is not installed in {FASHION.system_folders[0]}")
    made = make_loaders(dataset, batch_size=128, seed=0)
    assert made.val is not None
    assert (made.train.num_samples, made.val.num_samples, made.test.num_samples) == sizes
    assert (made.in_channels, made.num_classes, made.image_size) == (1, 10, 28)
    assert made.class_names == dataset.class_names and (made.mean, made.std) == (dataset.mean, dataset.std)
    inputs = torch.cat([inputs for inputs, _ in made.val])
    assert abs(inputs.mean()) < 0.05 and abs(inputs.std() - 1) < 0.05


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 500), share=st.floats(0, 0.999), seed=st.integers(0, 5))
def test_the_split_is_disjoint_complete_and_of_the_share_asked_for(total: int, share: float, seed: int) -> None:
    wanted = max(1, round(share * total)) if share else 0
    if wanted >= total:
        assert "leaves none" in usage_error(lambda: split(total, share, seed))
        return
    kept, held = split(total, share, seed)
    assert len(held) == wanted
    assert sorted(kept.tolist() + held.tolist()) == list(range(total))
    assert torch.equal(held, split(total, share, seed)[1])


def test_the_split_depends_on_the_seed() -> None:
    assert not torch.equal(split(100, 0.1, 1)[1], split(100, 0.1, 2)[1])


def test_parts_do_not_overlap_and_evaluation_keeps_the_order_of_the_files() -> None:
    made = numbered_loaders(augment="none")
    assert made.val is not None
    train, val, test = seen(made.train), seen(made.val), seen(made.test)
    assert sorted(train + val) == list(range(100)) and test == list(range(200, 240))
    assert train != sorted(train) and val == sorted(val) and len(val) == 10


def test_validation_and_test_are_not_augmented() -> None:
    plain, augmented = numbered_loaders(), numbered_loaders(augment="cutout_rotate")
    assert plain.val is not None and augmented.val is not None
    assert equal(plain.val, augmented.val) and equal(plain.test, augmented.test)
    assert not equal(plain.train, augmented.train)


def test_without_a_share_there_is_no_validation() -> None:
    made = numbered_loaders(val_share=0)
    assert made.val is None and made.train.num_samples == 100


def test_tuning_tests_on_a_fifth_of_the_training_images_and_opens_no_test_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Numbered, "sizes", {True: 100})
    made = numbered_loaders(tuning=True, val_share=0.1)
    assert made.test is made.val and made.test.num_samples == 20 and made.train.num_samples == 80
    assert not set(seen(made.test)) & set(seen(made.train))
    with pytest.raises(KeyError):
        numbered_loaders()


def test_limits_are_for_training_and_for_validation_with_test() -> None:
    made = numbered_loaders(limit_train_batches=3, limit_test_batches=1)
    assert made.val is not None
    assert (len(made.train), len(made.val), len(made.test)) == (3, 1, 1)
    assert [len(list(loader)) for loader in (made.train, made.val, made.test)] == [3, 1, 1]


def test_shuffled_labels_are_a_permutation_of_the_training_labels_only() -> None:
    plain, shuffled, again = (numbered_loaders(random_shuffle_labels=on) for on in (False, True, True))
    assert plain.val is not None and shuffled.val is not None
    assert equal(plain.val, shuffled.val) and equal(plain.test, shuffled.test)
    assert sorted(plain.train.targets.tolist()) == sorted(shuffled.train.targets.tolist())
    assert (plain.train.targets != shuffled.train.targets).sum() > 30
    assert torch.equal(shuffled.train.targets, again.train.targets)
    assert torch.equal(plain.train.images, shuffled.train.images)


def test_normalisations_are_as_documented() -> None:
    pixels = Numbered().load(False)[0][:8].float() / 255
    for name, mean, std in (("dataset", 0.25, 0.5), ("unit", 0, 1), ("imagenet", 0.449, 0.226)):
        made = numbered_loaders(normalize=name)
        assert made.mean == (mean,) and made.std == (std,)
        torch.testing.assert_close(next(iter(made.test))[0], (pixels - mean) / std)


def test_colour_images_get_imagenets_constants_per_channel() -> None:
    made = make_loaders(InFiles(), batch_size=2, seed=0, normalize="imagenet", workers=0)
    pixels = Numbered().load(False)[0][:2].float() / 255
    inputs = next(iter(made.test))[0]
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        torch.testing.assert_close(inputs[:, channel], (pixels[:, 0] - mean) / std)


def test_another_image_size_is_resized_with_antialiasing_once() -> None:
    made = numbered_loaders(image_size=3)
    assert made.image_size == 3 and made.test.images.shape == (40, 1, 3, 3)
    halves = np.asarray(
        Image.fromarray(Numbered().load(False)[0][0, 0].numpy()).resize((3, 3), Image.Resampling.BILINEAR)
    )
    assert (made.test.images[0, 0].int() - torch.from_numpy(halves.astype(int))).abs().max() <= 1
    assert next(iter(made.train))[0].shape == (8, 1, 3, 3)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 7), side=st.integers(1, 9), chunk=st.integers(1, 4))
def test_resizing_in_pieces_changes_nothing(count: int, side: int, chunk: int) -> None:
    images = numbered_images(count)
    result = resized(images, side, chunk)
    assert result.shape == (count, 1, side, side) and result.dtype == torch.uint8
    assert torch.equal(result, resized(images, side))
    grey = torch.full((2, 3, 6, 6), 77, dtype=torch.uint8)
    assert (resized(grey, side) == 77).all()


@pytest.mark.parametrize(("options", "words"), [
    ({"num_classes": 7}, "num_classes 7: Numbered has 5 classes"),
    ({"normalize": "unti"}, "did you mean 'unit'"),
    ({"augment": "crop"}, "did you mean 'crop_flip'"),
    ({"val_share": 1.0}, "val_share must be"), ({"val_share": -0.1}, "val_share must be"),
    ({"val_share": 0.999}, "leaves none"), ({"image_size": 0}, "image_size must be"),
    ({"batch_size": 0}, "batch_size must be"), ({"limit_test_batches": 0}, "limit must be"),
])  # fmt: skip
def test_bad_options_are_usage_errors(options: dict, words: str) -> None:
    assert words in usage_error(lambda: numbered_loaders(**options))


def test_the_expected_number_of_classes_is_accepted() -> None:
    assert numbered_loaders(num_classes=5).num_classes == 5


def test_labels_beyond_the_classes_and_empty_sets_are_usage_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbered, "sizes", {True: 100, False: 0})
    assert "has no test images" in usage_error(numbered_loaders)
    monkeypatch.undo()
    images, targets = Numbered().load(True)
    monkeypatch.setattr(Numbered, "load", lambda self, train: (images, targets + 1))
    assert "labels 1..5, not 0..4" in usage_error(numbered_loaders)


def test_imagenets_constants_are_for_one_or_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Numbered, "in_channels", 2)
    assert "1 or 3 channels" in usage_error(lambda: numbered_loaders(normalize="imagenet"))


# -------------------------------------------------------------------------------------------- scoring batches


def scoring(made: Loaders, kind: str, **options: Any) -> list[tuple[Tensor, Tensor]]:
    settings: dict[str, Any] = {
        "batches": None,
        "samples": None,
        "batch_size": 8,
        "seed": 1,
        "step": 0,
        **options,
    }
    return made.scoring_batches(kind, **settings)


def scored(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [position for inputs, _ in batches for position in positions(inputs)]


def test_no_scoring_data_is_an_empty_list() -> None:
    assert scoring(numbered_loaders(), "none") == []


def test_random_scoring_batches_are_training_images_each_once() -> None:
    made = numbered_loaders()
    batches = scoring(made, "random", batches=5)
    assert [len(y) for _, y in batches] == [8] * 5
    found = scored(batches)
    assert len(set(found)) == 40 and set(found) <= set(seen(made.train))
    assert [y.tolist() for _, y in batches] == [[p % 5 for p in positions(x)] for x, _ in batches]


def test_an_exhausted_set_starts_anew() -> None:
    found = scored(scoring(numbered_loaders(), "random", samples=200))
    counts = np.bincount(found)
    assert sorted(set(counts[counts > 0])) == [2, 3] and len(found) == 200
    assert len(set(found[:90])) == len(set(found[90:180])) == 90


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(5, 84), batch_size=st.integers(1, 50), step=st.integers(0, 3))
def test_balanced_scoring_batches_have_equally_many_of_every_class(
    samples: int, batch_size: int, step: int
) -> None:
    made = numbered_loaders(val_share=0)
    batches = scoring(made, "balanced", samples=samples, batch_size=batch_size, step=step)
    each = samples // 5
    targets = torch.cat([y for _, y in batches])
    assert torch.bincount(targets, minlength=5).tolist() == [each] * 5
    assert len(set(scored(batches))) == 5 * each
    assert [len(y) for _, y in batches[:-1]] == [batch_size] * (math.ceil(5 * each / batch_size) - 1)
    for _, y in batches:  # classes take turns, so that each batch is as balanced as it can be
        counts = torch.bincount(y, minlength=5)
        assert counts.max() - counts.min() <= 1


def test_scoring_depends_on_seed_and_step_alone() -> None:
    fresh, used = numbered_loaders(), numbered_loaders(augment="cutout")
    list(used.train), next(iter(used.train))
    for kind in ("random", "balanced"):
        first = scoring(fresh, kind, samples=30)
        assert equal(first, scoring(used, kind, samples=30))
        assert not equal(first, scoring(fresh, kind, samples=30, step=1))
        assert not equal(first, scoring(fresh, kind, samples=30, seed=2))


def test_scoring_leaves_the_training_order_and_the_global_random_state_alone() -> None:
    undisturbed, made = numbered_loaders(augment="flip"), numbered_loaders(augment="flip")
    expected, state, found = list(undisturbed.train), torch.get_rng_state(), []
    for batch in made.train:
        found.append(batch)
        scoring(made, "random", batches=2)
    assert equal(expected, found) and made.train.epoch == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_scoring_sees_shuffled_labels_and_the_normalisation_in_use() -> None:
    made = numbered_loaders(random_shuffle_labels=True, normalize="dataset", val_share=0)
    ((inputs, targets),) = scoring(made, "random", samples=100, batch_size=100)
    found = torch.tensor(positions(inputs * 0.5 + 0.25))
    assert torch.equal(targets, made.train.targets[found]) and (targets != found % 5).any()


@pytest.mark.parametrize(("kind", "options", "words"), [
    ("ballanced", {"samples": 10}, "did you mean 'balanced'"),
    ("random", {}, "batches or samples must be given"),
    ("random", {"samples": 3, "batches": 3}, "batches or samples must be given"),
    ("random", {"batches": 0}, "0 samples"), ("random", {"samples": -1}, "-1 samples"),
    ("balanced", {"samples": 4}, "4 scoring samples are too few for 5 classes"),
    ("balanced", {"samples": 200}, "need 40 training images of every class, class 0 has"),
])  # fmt: skip
def test_impossible_scoring_data_is_a_usage_error(kind: str, options: dict, words: str) -> None:
    assert words in usage_error(lambda: scoring(numbered_loaders(), kind, **options))


@pytest.mark.parametrize("wanted", [1, 3, 10**6])
def test_so_many_of_each_class_or_as_many_as_the_smallest_has(wanted: int) -> None:
    made = numbered_loaders(val_share=0)
    sizes = torch.bincount(made.train.targets, minlength=5)
    targets = torch.cat([y for _, y in scoring(made, "balanced", per_class=wanted)])
    assert torch.bincount(targets, minlength=5).tolist() == [min(wanted, int(sizes.min()))] * 5
    if wanted == 3:
        batches = scoring(made, "balanced", samples=15)
        assert equal(scoring(made, "balanced", per_class=3), batches)


def test_balanced_batches_count_as_samples() -> None:
    assert len(scored(scoring(numbered_loaders(), "balanced", batches=5, batch_size=4))) == 20


# ----------------------------------------------------------------------------------------------- FolderLoader


def folder_loaders(workers: int, **options: Any) -> Any:
    settings: dict[str, Any] = {"batch_size": 8, "seed": 1, **options}
    return make_loaders(InFiles(), workers=workers, **settings)


def test_files_give_the_batches_that_tensors_give() -> None:
    from_tensors = numbered_loaders(random_shuffle_labels=True, augment="crop_flip")
    from_files = folder_loaders(0, random_shuffle_labels=True, augment="crop_flip")
    assert from_tensors.val is not None and from_files.val is not None
    pairs = ((from_tensors.train, from_files.train), (from_tensors.val, from_files.val),
             (from_tensors.test, from_files.test))  # fmt: skip
    for tensors, files in pairs:
        assert isinstance(files, FolderLoader) and len(tensors) == len(files)
        assert equal(tensors, [(x[:, :1], y) for x, y in files])
    assert equal(scoring(from_tensors, "balanced", samples=20),
                 [(x[:, :1], y) for x, y in scoring(from_files, "balanced", samples=20)])  # fmt: skip


def test_workers_change_no_batch_nor_does_scoring_or_leaving_early() -> None:
    plain, working = folder_loaders(0, augment="flip"), folder_loaders(1, augment="flip")
    state = torch.get_rng_state()
    for leave_early in (False, True, False):
        found = []
        for batch in working.train:
            found.append(batch)
            if len(found) == 2:
                assert equal(scoring(working, "random", batches=1), scoring(plain, "random", batches=1))
                if leave_early:
                    break
        assert equal(list(plain.train)[: len(found)], found)
    assert len(found) == len(working.train) == 12
    assert equal(plain.test, working.test)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_of_pictures_becomes_batches(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 2)):
        for level, name in ((50, "ant"), (200, "owl")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                Image.new("L", (30, 20), level).save(tmp_path / part / name / f"{index}.png")
    made = make_loaders(IMAGEFOLDER(data_dir=tmp_path), batch_size=4, seed=0, normalize="unit", workers=1,
                        val_share=0.25, num_classes=2)  # fmt: skip
    assert made.val is not None and made.class_names == ("ant", "owl")
    assert (made.train.num_samples, made.val.num_samples, made.test.num_samples) == (9, 3, 4)
    assert (made.in_channels, made.num_classes, made.image_size) == (3, 2, 64)
    assert [len(y) for _, y in made.train] == [4, 4]
    for inputs, targets in [*made.train, *made.val, *made.test]:
        assert inputs.shape[1:] == (3, 64, 64)
        assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long(), torch.tensor([50, 200])[targets])
    assert "num_classes 3" in usage_error(
        lambda: make_loaders(IMAGEFOLDER(data_dir=tmp_path), batch_size=4, seed=0, num_classes=3)
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_one_line_that_names_it_from_a_worker_too(workers: int, tmp_path: Path) -> None:
    path = tmp_path / "train" / "ant" / "bad.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no picture")
    files = CheckedFiles(IMAGEFOLDER(data_dir=tmp_path).open(True, 8), (3, 8, 8), "IMAGEFOLDER")
    made = FolderLoader(
        files, torch.zeros(1).long(), batch_size=1, num_workers=workers, mean=(0,) * 3, std=(1,) * 3
    )
    assert usage_error(lambda: list(made)).startswith(f"cannot read {path}:")


def test_tuning_on_a_folder_needs_no_test_folder(tmp_path: Path) -> None:
    (tmp_path / "train" / "ant").mkdir(parents=True)
    for index in range(10):
        Image.new("L", (4, 4)).save(tmp_path / "train" / "ant" / f"{index}.png")
    dataset = IMAGEFOLDER(data_dir=tmp_path)
    made = make_loaders(dataset, batch_size=4, seed=0, tuning=True, image_size=8, workers=0)
    assert (made.train.num_samples, made.test.num_samples, made.image_size) == (8, 2, 8)
    assert "no folder test or val" in usage_error(lambda: make_loaders(dataset, batch_size=4, seed=0))
    assert "workers must be" in usage_error(
        lambda: make_loaders(dataset, batch_size=4, seed=0, tuning=True, workers=-1)
    )
