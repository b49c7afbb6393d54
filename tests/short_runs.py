"""Training runs of seconds, without a run folder, that the tests of schedules share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.framework.plugins.registry import build
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.training.hooks import manager
from secateur.framework.training.loss import Loss
from secateur.framework.training.trainer import Parts, Settings, Trainer
from secateur.utils.loading.dataset import DataSet
from secateur.utils.loading.loaders import make_loaders
from tests.networks import ConvNet, seeded


class Blobs(DataSet):
    """Five classes of small noisy images."""

    in_channels, num_classes, image_size = 3, 5, 8
    mean, std = (0.5,) * 3, (0.3,) * 3

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """40 images, or 10."""
        generator = torch.Generator().manual_seed(int(train))
        targets = torch.arange(40 if train else 10) % 5
        images = torch.randint(0, 200, (len(targets), 3, 8, 8), generator=generator, dtype=torch.uint8)
        return images + (10 * targets.to(torch.uint8)).view(-1, 1, 1, 1), targets


def trained(
    pruner: Pruner,
    listeners: Sequence[Any] = (),
    *,
    epochs: int = 3,
    optimizer: str = "SGD",
    model: nn.Module | None = None,
    **settings: Any,
) -> Trainer:
    """Train a small network on 30 images in 3 batches an epoch, with these listeners before the pruner."""
    model = seeded(ConvNet) if model is None else model
    loaders = make_loaders(Blobs(), batch_size=10, seed=0, val_share=0.25)
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    stepping = build("optimizers", optimizer, params=model.parameters(), lr=0.01, **options)
    loss: Loss = build("losses", "CrossEntropy")
    parts = Parts(model, loss, stepping, loaders, torch.optim.lr_scheduler.StepLR(stepping, 1, 0.5))
    trainer: Trainer = build(
        "trainers", "DefaultTrainer", parts=parts, settings=Settings(epochs=epochs, **settings)
    )
    trainer.hooks = manager([*listeners, pruner]).hook
    trainer.train()
    return trainer
