"""The recipes in configs/ that train the networks for CIFAR: published settings, networks that exist."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from secateur.framework.commands.prepare import prepare_run
from secateur.framework.plugins.registry import ROOT, build


class Recipe(NamedTuple):
    """What was published: network, its parameters, and how it was trained."""

    model: str
    options: dict[str, Any]
    params: int
    learning_rate: float
    epochs: int
    milestones: tuple[int, ...]
    gamma: float
    weight_decay: float
    batch_size: int


DECAYS = (81, 122)
LATE = (150, 225)
RECIPES = {
    "alexnet": Recipe("AlexNetCifar", {}, 2_472_266, 0.01, 164, DECAYS, 0.1, 5e-4, 128),
    "vgg19_bn": Recipe("VGGCifar", {"depth": 19}, 20_040_522, 0.1, 164, DECAYS, 0.1, 5e-4, 128),
    "resnet110": Recipe("ResNetCifar", {"depth": 110}, 1_730_714, 0.1, 164, DECAYS, 0.1, 1e-4, 128),
    "resnet110_legacy": Recipe("ResNetCifar", {"depth": 110, "legacy_depth_rule": True}, 1_704_154, 0.1, 164,
                               DECAYS, 0.1, 1e-4, 128),
    "preresnet110": Recipe("PreResNet", {"depth": 110}, 1_730_522, 0.1, 164, DECAYS, 0.1, 1e-4, 128),
    "preresnet110_legacy": Recipe("PreResNet", {"depth": 110, "legacy_depth_rule": True}, 1_703_258, 0.1, 164,
                                  DECAYS, 0.1, 1e-4, 128),
    "wrn28_10": Recipe("WideResNet", {"depth": 28, "widen_factor": 10, "dropout": 0.3}, 36_479_194, 0.1, 200,
                       (60, 120, 160), 0.2, 5e-4, 128),
    "resnext29_8x64": Recipe("ResNeXt29", {"cardinality": 8}, 34_426_698, 0.1, 300, LATE, 0.1, 5e-4, 128),
    "resnext29_16x64": Recipe("ResNeXt29", {"cardinality": 16}, 68_155_210, 0.1, 300, LATE, 0.1, 5e-4, 128),
    "densenet_bc_100_12": Recipe("DenseNetBC", {"depth": 100, "growth_rate": 12}, 769_162, 0.1, 300, LATE, 0.1,
                                 1e-4, 64),
    "densenet_bc_190_40": Recipe("DenseNetBC", {"depth": 190, "growth_rate": 40}, 25_624_430, 0.1, 300, LATE, 0.1,
                                 1e-4, 64),
}  # fmt: skip


def test_there_is_a_test_for_every_training_recipe() -> None:
    assert {file.stem for file in (ROOT / "configs").glob("*_cifar.yaml")} == {f"{name}_cifar" for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_the_published_network_with_the_published_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES[name]
    config, _ = prepare_run({}, ROOT / "configs" / f"{name}_cifar.yaml")
    assert (config.model, config.options("model")) == (recipe.model, recipe.options)
    with torch.device("meta"):
        model = build("models", config.model, in_channels=3, image_size=32, **config.options("model"))
    assert sum(tensor.numel() for tensor in model.parameters()) == recipe.params
    assert (config.learning_rate, config.epochs, config.batch_size, config.l2_reg) == (
        recipe.learning_rate, recipe.epochs, recipe.batch_size, recipe.weight_decay,
    )  # fmt: skip
    assert (config.lr_schedule, tuple(config.lr_milestones), config.lr_gamma) == (
        "multistep", recipe.milestones, recipe.gamma,
    )  # fmt: skip
    assert (config.optimizer, config.momentum, config.grad_clip, config.val_share) == ("SGD", 0.9, 0, 0)
    assert (config.data_set, config.augment, config.normalize) == ("CIFAR10", "crop_flip", "dataset")
    assert config.prune_criterion == "EmptyCrit"
    assert list(tmp_path.iterdir()) == []
