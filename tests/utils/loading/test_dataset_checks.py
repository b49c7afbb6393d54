"""A data set that returns anything but uint8 images and integer labels is refused by name, before a run begins."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.utils.loading.dataset import DataSet, FolderDataSet
from secateur.utils.loading.loaders import make_loaders
from tests.utils.loading.test_dataset import usage_error

N, C, S, K = 12, 3, 8, 4


def images() -> Tensor:
    return torch.arange(N * C * S * S).reshape(N, C, S, S).remainder(251).to(torch.uint8)


def labels() -> Tensor:
    return torch.arange(N) % K


class Mine(DataSet):
    """What a test puts into `part` is what `load` returns."""

    in_channels: Any = C
    num_classes: Any = K
    image_size: Any = S
    mean: Any = (0.5,) * C
    std: Any = (0.5,) * C
    part: Any = None

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        part: tuple[Tensor, Tensor] = self.part
        return part


def loaded(part: Any = None, **attributes: Any) -> Any:
    part = (images(), labels()) if part is None else part
    dataset = type("Mine", (Mine,), {"part": part, **attributes})()
    return make_loaders(dataset, batch_size=4, seed=0, workers=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_labels_of_any_width_are_the_same_labels(dtype: torch.dtype) -> None:
    made = loaded((images(), labels().to(dtype)))
    assert made.test.targets.dtype == torch.int64
    assert torch.equal(made.test.targets, labels())


PARTS: dict[str, tuple[Callable[[], Any], str]] = {
    **{
        f"images of {dtype}": (lambda dtype=dtype: (images().to(dtype), labels()), f"got {str(dtype)[6:]} ({N}")
        for dtype in (torch.float32, torch.float64, torch.float16, torch.int64, torch.int8, torch.bool,
                      torch.complex64)
    },
    **{
        f"images in {len(shape)} dimensions {shape}": (
            lambda shape=shape: (torch.zeros(shape, dtype=torch.uint8), labels()), f"got uint8 {shape}",
        )
        for shape in ((N,), (N, S), (N, S, S), (N, C, S, S, 1), (N, S, S, C), (N, 1, S, S), (N, C, 0, S), ())
    },
    **{
        f"labels of {dtype}": (lambda dtype=dtype: (images(), labels().to(dtype)), f"got {str(dtype)[6:]} ({N},)")
        for dtype in (torch.float32, torch.float64, torch.bool, torch.complex64)
    },
    "labels in a column": (lambda: (images(), labels()[:, None]), f"shape (N,), got int64 ({N}, 1)"),
    "one label": (lambda: (images(), torch.tensor(1)), "got int64 ()"),
    "one-hot labels": (lambda: (images(), torch.eye(K)[labels()].long()), f"got int64 ({N}, {K})"),
    "too few labels": (lambda: (images(), labels()[:-1]), f"{N} images and {N - 1} labels"),
    "too many labels": (lambda: (images()[:-1], labels()), f"{N - 1} images and {N} labels"),
    "a negative label": (lambda: (images(), labels() - 1), f"labels -1..{K - 2}, not 0..{K - 1}"),
    "labels from 1 on": (lambda: (images(), labels() + 1), f"labels 1..{K}, not 0..{K - 1}"),
    "nothing in it": (lambda: (images()[:0], labels()[:0]), "has no training images"),
    "no labels": (lambda: (images(), labels()[:0]), f"{N} images and 0 labels"),
    "arrays": (lambda: (images().numpy(), labels().numpy()), "tuple of ndarray, ndarray"),
    "a list of labels": (lambda: (images(), labels().tolist()), "tuple of Tensor, list"),
    "images alone": (images, "got Tensor"),
    "three things": (lambda: (images(), labels(), 3), "got tuple of Tensor, Tensor, int"),
    "a number": (lambda: 3, "got int"),
    "sparse images": (lambda: (images().to_sparse(), labels()), "got a sparse_coo tensor"),
    "meta images": (lambda: (images().to("meta"), labels()), "got a meta tensor"),
    "meta labels": (lambda: (images(), labels().to("meta")), "got a meta tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_anything_else_is_one_line_that_names_the_set(case: str) -> None:
    make, words = PARTS[case]
    message = usage_error(lambda: loaded(make()))
    assert message.startswith("Mine") and words in message
    assert "tensor(" not in message


@pytest.mark.parametrize(("attribute", "value"), [
    *(("in_channels", value) for value in (None, 0, -1, 3.0, "3", True)),
    *(("num_classes", value) for value in (None, 0, -1, 4.0, "4")),
    *(("image_size", value) for value in (0, -8, 8.0, "8", (8, 8))),
    *(("mean", value) for value in (None, 0.5, (0.5,), (0.5,) * 4, "abc", (0.5, 0.5, float("nan")), (None,) * 3)),
    *(("std", value) for value in (None, 0.5, (0.5,), (0.5, 0.0, 0.5), (-1,) * 3, (float("inf"),) * 3)),
    ("class_names", ("a", "b")), ("class_names", "abcd"),
])  # fmt: skip
def test_a_wrong_attribute_is_named(attribute: str, value: Any) -> None:
    message = usage_error(lambda: loaded(**{attribute: value}))
    assert message.startswith(f"Mine: {attribute} ")


@pytest.mark.parametrize("values", [np.full(C, 0.5), torch.full((C,), 0.5), [0.5] * C])
def test_mean_and_deviation_may_be_any_numbers(values: Any) -> None:
    assert loaded(mean=values, std=values).mean == (0.5,) * C


class Files:
    """Image files that are not files."""

    def __init__(self, pictures: Any, targets: Any) -> None:
        self.pictures = pictures
        self.targets = targets

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        picture: Tensor = self.pictures[index]
        return picture


class Folder(FolderDataSet):
    in_channels, num_classes, image_size, mean, std = C, K, S, (0.5,) * C, (0.5,) * C
    files: Any = None

    def open(self, train: bool, image_size: int) -> Files:
        files: Files = self.files
        return files


def opened(files: Any, **options: Any) -> Any:
    dataset = type("Folder", (Folder,), {"files": files})()
    return make_loaders(dataset, batch_size=4, seed=0, **({"workers": 0} | options))


FILES: dict[str, tuple[Callable[[], Any], str]] = {
    "float images": (lambda: Files(images().float(), labels().tolist()), "image 0 is float32"),
    "another size": (lambda: Files(images()[..., 1:], labels().tolist()), f"image 0 is uint8 ({C}, {S}, {S - 1})"),
    "grey": (lambda: Files(images()[:, 0], labels().tolist()), f"image 0 is uint8 ({S}, {S})"),
    "arrays": (lambda: Files(images().numpy(), labels().tolist()), "image 0 is ndarray"),
    "nothing": (lambda: Files([], []), "has no training images"),
    "too few labels": (lambda: Files(images(), labels().tolist()[1:]), f"{N} images and {N - 1} labels"),
    "float labels": (lambda: Files(images(), labels().double().tolist()), "got float32"),
    "names for labels": (lambda: Files(images(), ["ant"] * N), "a list of integer targets"),
    "no targets": (lambda: Files(images(), None), "a list of integer targets"),
    "a label out of range": (lambda: Files(images(), [K] * N), f"labels {K}..{K}"),
    "no files": (lambda: None, "a list of integer targets"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_image_files_are_held_to_the_same(case: str) -> None:
    make, words = FILES[case]
    message = usage_error(lambda: opened(make()))
    assert message.startswith("Folder") and words in message


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1}, {"preload": True}])
def test_an_image_in_the_middle_is_named_wherever_it_is_read(options: dict[str, Any]) -> None:
    pictures: list[Any] = list(images())
    pictures[5] = pictures[5].float()
    message = usage_error(lambda: list(opened(Files(pictures, labels().tolist()), **options).test))
    assert "Folder: open(train=" in message and "image 5 is float32" in message
