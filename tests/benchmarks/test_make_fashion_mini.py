"""The script that makes FASHION_MINI: its choice of images, and the file that it writes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import make_fashion_mini
from secateur.utils.data.FASHION_MINI import FASHION_MINI
from tests.utils.loading.test_dataset import idx_arrays, usage_error, write_idx


def test_the_embedded_set_comes_out_of_the_full_set_again() -> None:
    source = make_fashion_mini.SOURCE
    if not (source / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"the full Fashion-MNIST is not installed in {source}")
    arrays = make_fashion_mini.make(source)
    with np.load(FASHION_MINI.file, allow_pickle=False) as embedded:
        assert set(embedded) == set(arrays)
        for name, array in arrays.items():
            assert array.dtype == embedded[name].dtype and np.array_equal(array, embedded[name])


def test_the_choice_is_balanced_and_differs_between_the_parts() -> None:
    labels = np.arange(1000) % 10
    train, test = (make_fashion_mini.chosen(labels, part, 20) for part in ("train", "test"))
    assert np.bincount(labels[train]).tolist() == [20] * 10
    assert np.array_equal(train, np.unique(train)) and not np.array_equal(train, test)
    assert np.array_equal(train, make_fashion_mini.chosen(labels, "train", 20))
    message = usage_error(lambda: make_fashion_mini.chosen(labels, "train", 101))
    assert message == "class 0 has 100 train images, 101 are needed"


def test_the_script_writes_the_file_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_idx(tmp_path, packed=True)
    monkeypatch.setattr(make_fashion_mini, "PER_CLASS", {"train": 1})
    output = tmp_path / "mini"
    monkeypatch.setattr(sys, "argv", ["x", "--source", str(tmp_path), "--output", str(output)])
    assert make_fashion_mini.main() == 0
    with np.load(output, allow_pickle=False) as arrays:
        images, labels = idx_arrays(train=True)
        assert sorted(arrays["train_labels"].tolist()) == list(range(10))
        for image, label in zip(arrays["train_images"], arrays["train_labels"], strict=True):
            assert any(np.array_equal(image, images[index]) for index in np.flatnonzero(labels == label))
    assert str(output) in capsys.readouterr().out


def test_the_script_refuses_a_source_without_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--source", str(tmp_path), "--output", str(tmp_path / "mini")])
    assert make_fashion_mini.main() == 2
    assert f"--source {tmp_path} lacks train-images-idx3-ubyte" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
