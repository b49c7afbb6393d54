"""The listener that rewinds the pruned network to an early state after each pruning step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.framework.network.masks import PREFIX, Masks
from secateur.framework.schedules.base import BEFORE_TRAINING
from secateur.framework.training.hooks import hookimpl
from secateur.utils.errors import UsageError
from secateur.utils.optimizers import unwrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from secateur.framework.training.events import PruneEvent
    from secateur.framework.training.trainer import Trainer


def rewind_point(epoch: int) -> str:
    """Describe the state after a number of epochs in words."""
    return "the initial network" if epoch == 0 else f"the network after {epoch} epoch{'s' * (epoch > 1)}"


def check_rewinding(rewind_to: int, plan: Mapping[int, Sequence[float]], epochs: int) -> None:
    """Raise UsageError unless pruning is due in training and not before the rewind point."""
    first = min((moment for moment in plan if moment != BEFORE_TRAINING), default=None)
    if first is None:
        raise UsageError(
            "enable_rewinding is for criterions that prune during or after training", argument="enable_rewinding"
        )
    if rewind_to > first + 1 or BEFORE_TRAINING in plan and rewind_to > 0:
        when = f"after {first + 1} epochs" if BEFORE_TRAINING not in plan else "before training"
        raise UsageError(
            f"rewind_to {rewind_to} is later than the first pruning, {when} (of {epochs})", argument="rewind_to"
        )


class Rewinder:
    """Rewind the pruned network to its state after `epoch` epochs (0: the initial state).

    The state is restored once after each moment in training that pruned anything. It consists of all parameters,
    buffers and the optimizer's state, is cut together with the network and masked. The learning rate, its schedule
    and the epoch count continue. Frankle, Dziugaite, Roy and Carbin, 2019, arXiv:1903.01611.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        #: whether a step of this moment pruned anything
        self._removed = False
        #: parameters and buffers by name, and the optimizer's tensors of a parameter's shape by their key
        self._tensors: dict[str, Tensor] = {}
        self._moments: dict[str, dict[str, Tensor]] = {}
        #: the optimizer's other state of each parameter, such as its step count
        self._scalars: dict[str, dict[str, Any]] = {}

    @hookimpl(tryfirst=True)
    def run_started(self, trainer: Trainer) -> None:
        """Store the initial network, before any pruning."""
        if self.epoch == 0:
            self._keep(trainer)

    @hookimpl(tryfirst=True)
    def epoch_ended(self, trainer: Trainer) -> None:
        """Store the network, before any pruning, if this was the last epoch before the rewind point."""
        if trainer.epoch + 1 == self.epoch:
            self._keep(trainer)

    @hookimpl
    def pruned(self, event: PruneEvent) -> None:
        """Record whether anything was pruned; later steps of the same moment still score the trained network."""
        self._removed = self._removed or event.removed > 0

    @hookimpl(trylast=True)
    def moment_ended(self, trainer: Trainer) -> None:
        """Restore the state if anything was pruned and training has started."""
        removed, self._removed = self._removed, False
        if removed and self._tensors and trainer.progress.step:
            self._restore(trainer)
            done = trainer.epoch + 1
            trainer.progress.rewinds.append({"after_epochs": done, "to_epochs": self.epoch})
            trainer.hooks.rewound(trainer=trainer, to_epoch=self.epoch)

    def _keep(self, trainer: Trainer) -> None:
        state = unwrapped(trainer.optimizer).state
        self._tensors |= {name: tensor.detach().clone() for name, tensor in _tensors(trainer).items()}
        for name, parameter in trainer.model.named_parameters():
            for key, value in state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    self._moments.setdefault(key, {})[name] = value.detach().clone()
                else:
                    self._scalars.setdefault(name, {})[key] = copy.deepcopy(value)
        # the mappings themselves: a cut replaces their entries
        trainer.companions += [self._tensors, *self._moments.values()]

    @torch.no_grad()
    def _restore(self, trainer: Trainer) -> None:
        for name, tensor in _tensors(trainer).items():
            tensor.copy_(self._tensors[name])
        state = unwrapped(trainer.optimizer).state
        for name, parameter in trainer.model.named_parameters():
            if parameter not in state:
                continue
            kept = copy.deepcopy(self._scalars.get(name, {}))
            kept |= {key: of[name].clone() for key, of in self._moments.items() if name in of}
            if kept:
                state[parameter] = kept
            else:  # it had no state yet
                del state[parameter]
        trainer.use_memory_format(trainer.memory_format)  # which may not be that of the kept moments
        Masks(trainer.model).apply()


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Return parameters and buffers by name, without the masks."""
    named: dict[str, Tensor] = {**dict(trainer.model.named_parameters()), **dict(trainer.model.named_buffers())}
    return {name: value for name, value in named.items() if not name.rpartition(".")[2].startswith(PREFIX)}
