"""The recipes in configs/: what they say, and how many channels each leaves."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.commands.plan import plan_pruning
from secateur.framework.commands.prepare import prepare_run
from secateur.framework.plugins.registry import ROOT
from secateur.framework.pruning.channels.discovery import channel_groups
from secateur.framework.pruning.channels.groups import free_groups
from secateur.framework.pruning.scoring.criterion import Criterion
from secateur.framework.pruning.steps import step
from secateur.framework.schedules.every_n_batches import Iterative
from tests.networks import shipped

#: recipe -> channels that can go, channels that it takes
RECIPES = {
    "resnet50_91": (11392, 1000),
    "resnet50_81": (11392, 2200),
    "resnet50_72": (11392, 3200),
    "resnet50_56": (11392, 5500),
    "resnet101_75": (20096, 5000),
    "resnet101_55": (20096, 9000),
    "resnet101_50": (20096, 10000),
    "resnet101_40": (20096, 12000),
    "densenet121_60": (10176, 4100),
    "vgg16_60": (12352, 4900),
    "resnet56_cifar10_60": (1104, 440),
    "vgg16_cifar10_60": (12864, 5100),
}
FAST = ("resnet56_cifar10_60",)


def test_there_is_a_test_for_every_recipe() -> None:
    assert {file.stem for file in (ROOT / "configs").glob("*.json")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_published_training_and_the_numbers_of_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = prepare_run({}, ROOT / "configs" / f"{name}.json")
    units, goes = RECIPES[name]
    assert (config.schedule, config.frequency, config.prune_criterion) == ("iterative", 30, "TaylorGate")
    assert config.prune_neurons_max == goes
    assert (config.prune_per_iteration or 0) * (config.maximum_pruning_iterations or 0) == goes
    assert (config.learning_rate, config.lr_schedule, config.lr_step, config.lr_gamma) == (1e-3, "step", 10, 0.1)
    assert (config.epochs, config.batch_size, config.l2_reg, config.grad_clip) == (25, 256, 0, 0)
    assert (config.optimizer, config.momentum, config.group_wd_coeff, config.seed) == ("SGD", 0.9, 1e-8, 0)
    percent = int(name.rpartition("_")[2])
    # that of 56 % goes further than its name says, as the published one does
    assert 100 * (units - goes) / units == pytest.approx(51.7 if name == "resnet50_56" else percent, abs=0.8)


class Free(Criterion):
    """Costs nothing: the channel's original index."""

    granularity = "channel"

    def score(self, model: nn.Module, batches: Any, loss: Any, groups: Any = None) -> dict[str, Tensor]:
        """Equal for equal indices."""
        return {name: group.origin.float() for name, group in groups.items()}


TRACED: dict[str, tuple[nn.Module, Any]] = {}


def traced(settings: dict[str, Any]) -> tuple[nn.Module, Any, Tensor]:
    """A copy of the recipe's network and its groups, traced once for all recipes with it."""
    own = settings["model"] != "TorchvisionModel"
    size, key = (32, settings["model"]) if own else (64, settings["arch"])
    example = torch.zeros(1, 3, size, size)
    if key not in TRACED:
        options: dict[str, Any] = {} if own else {"arch": key, "num_classes": 1000}
        model = shipped(settings["model"], in_channels=3, image_size=size, **options)
        TRACED[key] = model, channel_groups(model, example, settings["protect"])
    model, groups = TRACED[key]
    return copy.deepcopy(model), copy.deepcopy(groups), example


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_takes_exactly_its_number_of_channels_and_no_whole_layer(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file = ROOT / "configs" / f"{name}.json"
    model, groups, example = traced(json.loads(file.read_text()))
    units, goes = RECIPES[name]
    assert sum(group.channels for group in free_groups(groups).values()) == units
    pruner, config = plan_pruning(*prepare_run({}, file), Free())
    assert isinstance(pruner.schedule, Iterative)
    monkeypatch.setattr(step, "channel_groups", lambda *_, **__: groups)
    monkeypatch.setattr("secateur.framework.pruning.steps.pruner.count_macs", lambda *_: (0, {}))
    monkeypatch.setattr(step.ChannelStep, "sparsity", lambda _: 0.0)
    pruner.prepare(model, example)
    trainer: Any = SimpleNamespace(
        model=model, example_input=example, loss=None, batch=None, count_macs=lambda _: None, memory_format=None,
        use_memory_format=lambda _: None,
        optimizer=SimpleNamespace(zero_grad=lambda **_: None), hooks=SimpleNamespace(pruned=lambda **_: None),
    )  # fmt: skip
    pruner.fit(5000 * 25)  # type: ignore[attr-defined]
    steps = config.maximum_pruning_iterations or 0
    for _ in range(30 * steps + 30):
        pruner.batch_ended(trainer, torch.zeros(()))
    left = free_groups(pruner.groups)
    assert len(pruner.events) == steps and all(
        event.removed == config.prune_per_iteration for event in pruner.events
    )
    assert sum(group.channels for group in left.values()) == units - goes
    assert len(left) == len(free_groups(groups)) and min(group.channels for group in left.values()) >= 1
    assert model.eval()(example).shape[0] == 1
