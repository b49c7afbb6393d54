"""Flags of the data set and its loaders."""

from dataclasses import dataclass

from secateur.framework.settings.field import section

_data = section("Data", study=True, to="loaders")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Settings of the data set and its loaders."""

    data_dir: str | None = _data(
        None, "folder of the data set", metavar="DIR", path="read", to="dataset", inherit="data"
    )
    download: bool = _data(True, "download a missing data set", to="dataset", dense=False)
    val_share: float = _data(0.1, "share of the training set for validation", low=0, below=1, inherit="data")
    image_size: int | None = _data(None, "resize images to N x N", low=1, most=8192, inherit="data")
    augment: str = _data(
        "none",
        "augmentation of the training images",
        choices=("none", "flip", "crop_flip", "cutout", "cutout_rotate", "resized_crop_flip"),
        study=False,
    )
    normalize: str = _data(
        "dataset", "normalisation of the inputs", choices=("unit", "imagenet", "dataset"), inherit="data"
    )
    input_dim: tuple[int, ...] = _data(
        (), "channels, height and width to expect of the inputs", low=1, metavar="C,H,W", dense=False, to=""
    )
    num_classes: int | None = _data(None, "number of classes to expect of the data set", low=1, inherit="data")
    limit_train_batches: int | None = _data(None, "use only N batches of each epoch", low=1, study=False)
    limit_test_batches: int | None = _data(
        None, "use only N batches of each evaluation", low=1, inherit="test", study=False
    )
    random_shuffle_labels: bool = _data(False, "shuffle the labels of the training set", study=False)
    preload_all_data: bool = _data(
        False, "keep all images of a folder data set in device memory", dense=False, to="loaders.preload"
    )
    workers: int = _data(2, "processes that load data sets larger than memory", low=0, most=256, dense=False)
