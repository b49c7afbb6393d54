"""Trainers of LeNet5 on a little of FASHION_MINI, put together as a run does it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from secateur.framework.commands import assemble
from secateur.framework.commands.plan import plan_pruning
from secateur.framework.commands.train import build_trainer
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.training.hooks import manager
from secateur.framework.training.trainer import Trainer


@pytest.fixture
def assembled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Pruner]]:
    """A trainer with its pruner, from settings and listeners; nothing is written."""
    monkeypatch.setattr("secateur.framework.network.memory_format.memory_format", lambda *_: ("contiguous", ""))

    def make(*listeners: Any, **settings: Any) -> tuple[Trainer, Pruner]:
        given = {
            "device": "cpu", "batch_size": 32, "limit_train_batches": 3, "limit_test_batches": 2, "epochs": 3,
            "memory_format": "contiguous", "outer_layer_pruning": False, "download": False,
        }  # fmt: skip
        config = RunConfig.from_dict(given | settings)
        torch.manual_seed(config.seed)
        criterion, decisions = assemble.build_criterion(config), Decisions()
        pruner, config = plan_pruning(config, decisions, criterion)
        loaders, config = assemble.build_loaders(config, decisions)
        model = assemble.prepare_model(config, assemble.build_model(config, loaders), loaders)
        example = loaders.scoring_batches("random", batches=1, samples=None, batch_size=1, seed=0, step=0)[0][0]
        pruner.prepare(model, example)
        trainer = build_trainer(config, model, loaders, pruner.plan)
        trainer.hooks = manager([*listeners, pruner]).hook
        torch.manual_seed(config.seed)
        return trainer, pruner

    return make
