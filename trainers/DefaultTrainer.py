from __future__ import annotations

import math
import time
from typing import Any, NoReturn

import torch
from accelerate import DistributedType
from torch import Tensor

from secateur.framework.network.preserve import evaluating
from secateur.framework.training.trainer import Parts, Settings, Trainer
from secateur.utils.classification import confusion_counts, correct_samples
from secateur.utils.errors import RunError
from secateur.utils.loading.batches import BatchLoader
from secateur.utils.optimizers import unwrapped

Batch = tuple[Tensor, Tensor]
#: on an accelerator, how many steps go by between two looks at whether a loss was not finite
WATCH_EVERY = 50


class DefaultTrainer(Trainer):
    """Plain supervised training; override `train_step`, `train_epoch`, `train` or `evaluate` to change one step.

    The loop knows nothing of pruning, logging or saving: these are listeners.
    """

    def __init__(self, parts: Parts, settings: Settings, **options: Any) -> None:
        super().__init__(parts, settings, **options)
        device = self.example_input.device
        self._noise = torch.Generator(device).manual_seed(settings.seed)
        self._totals: dict[str, Tensor] = {}
        self._samples = 0
        self._first_bad = torch.full((), -1, device=device)
        self._deadline = float("inf")

    def train(self) -> None:
        """All epochs, with an evaluation on the validation set after each."""
        minutes = self.settings.max_training_minutes
        self._deadline = time.monotonic() + 60 * minutes if minutes > 0 else float("inf")
        try:
            self.hooks.run_started(trainer=self)
            for epoch in range(self.settings.epochs):
                self.progress.epoch = epoch
                metrics = self.train_epoch()
                if self.loaders.val is not None:
                    metrics |= {f"{key}/val": value for key, value in self.evaluate(self.loaders.val).items()}
                self.hooks.epoch_ended(trainer=self, metrics=metrics)
                if self.progress.stopped:
                    break
            self.finish()
            self.hooks.training_ended(trainer=self)
        except BaseException as error:
            self.hooks.run_failed(trainer=self, error=error)
            raise

    def train_epoch(self) -> dict[str, float]:
        """One pass over the training set; `acc/train` and `loss/train` over all its samples."""
        self._totals, self._samples = {}, 0
        self.model.train()
        self.hooks.epoch_started(trainer=self)
        self.loaders.train.epoch = self.epoch
        title = f"epoch {self.epoch + 1}/{self.settings.epochs}"
        for batch in self.track(self.loaders.train, title, len(self.loaders.train)):
            self._update(batch)
            if self.settings.eval_freq and self.progress.step % self.settings.eval_freq == 0:
                self._evaluate_midway()
            if time.monotonic() > self._deadline:
                self.progress.stopped = f"max_training_minutes ({self.settings.max_training_minutes:g}) are over"
                break
        self._raise_if_bad()
        if self.lr_schedule is not None:
            self.lr_schedule.step()
        return self._means()

    def train_step(self, batch: Batch) -> Tensor:
        """Loss of one batch, a scalar to be minimised."""
        inputs, targets = batch
        outputs = self.model(inputs)
        loss, penalty = self.loss(self.softened(outputs), targets), self.penalty()
        self.record(len(inputs), loss=loss, penalty=penalty, acc=correct_samples(outputs, targets) / len(inputs))
        return loss + penalty

    def softened(self, outputs: Tensor) -> Tensor:
        """The logits over the temperature of training (`--T`)."""
        return outputs if self.settings.temperature == 1 else outputs / self.settings.temperature

    def penalty(self) -> Tensor:
        """What is added to the task loss in training, a scalar: the loss's own penalty."""
        return self.loss.penalty(self.model)

    @torch.inference_mode()
    def evaluate(self, loader: BatchLoader) -> dict[str, float]:
        """`acc` and `loss` over all samples of the loader, in eval mode.

        Leaves the counts of true and predicted classes in `confusion`. Raises RunError where the loss is not
        finite: such a network's accuracy means nothing.
        """
        total = table = None
        samples = 0
        with evaluating(self.model):
            for inputs, targets in self.track(loader, "evaluate", len(loader)):
                outputs = self.model(inputs)
                losses = self.loss(outputs, targets) * len(inputs)
                total = losses if total is None else total + losses
                counts = confusion_counts(outputs, targets)
                table = counts if table is None else table + counts
                samples += len(inputs)
        self.confusion = table
        if table is None or total is None:
            raise RunError("there is nothing to evaluate: the loader is empty")
        result = {"acc": float(table.trace()) / samples, "loss": float(total) / samples}
        if not math.isfinite(result["loss"]):
            self._fail(f"in the evaluation after {self.progress.step} steps")
        return result

    def record(self, samples: int, **values: Tensor) -> None:
        """Add batch means to the epoch's metrics; they stay on the device until the epoch ends."""
        for key, value in values.items():
            total = self._totals.get(key)
            value = value.detach()
            self._totals[key] = value * samples if total is None else torch.add(total, value, alpha=samples)
        self._samples += samples

    def _update(self, batch: Batch) -> None:
        self.batch = batch
        self._stepping().zero_grad(set_to_none=True)
        loss = self.train_step(batch)
        self._watch(loss.detach())
        self.accelerator.backward(loss)
        if self.settings.grad_noise > 0:
            self._add_noise()
        self.hooks.gradients_ready(trainer=self)
        if self.settings.grad_clip > 0:
            self._clip(self.settings.grad_clip)
        self._stepping().step()
        self.progress.step += 1
        self.progress.samples += len(batch[0])
        self.count_macs(len(batch[0]))
        self.hooks.batch_ended(trainer=self, loss=loss.detach())

    def _alone(self) -> bool:
        """Whether accelerate's wrappers would only pass calls on, which they do at 0.5 ms a step."""
        accelerator = self.accelerator
        alone = accelerator.distributed_type == DistributedType.NO and accelerator.scaler is None
        return alone and accelerator.sync_gradients

    def _stepping(self) -> Any:
        """What steps: the optimizer in its wrapper, or itself where that does the same."""
        return unwrapped(self.optimizer) if self._alone() else self.optimizer

    def _clip(self, limit: float) -> None:
        """Scale the gradients down to the limit; where its reading costs nothing, a norm below ends it there."""
        if not self._alone() or self.example_input.device.type != "cpu":
            self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
            return
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not float(norm) + 1e-6 < limit:  # the other way round NaN would pass
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def _add_noise(self) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                noise = torch.randn(parameter.shape, generator=self._noise, device=parameter.device)
                parameter.grad += self.settings.grad_noise * noise

    def _evaluate_midway(self) -> None:
        if self.loaders.val is not None:
            metrics = {f"{key}/val": value for key, value in self.evaluate(self.loaders.val).items()}
            self.hooks.evaluated(trainer=self, metrics=metrics)

    def _means(self) -> dict[str, float]:
        return {f"{key}/train": float(total) / self._samples for key, total in self._totals.items()}

    def _watch(self, loss: Tensor) -> None:
        """Stop at the first loss that is not finite; where reading it would wait for the device, look later."""
        if loss.device.type == "cpu":
            if not math.isfinite(loss.item()):
                self._fail(f"at step {self.progress.step}")
            return
        unset = (self._first_bad < 0) & ~torch.isfinite(loss)
        self._first_bad = torch.where(unset, self.progress.step, self._first_bad)
        if self.progress.step % WATCH_EVERY == 0:
            self._raise_if_bad()

    def _raise_if_bad(self) -> None:
        if int(self._first_bad) >= 0:
            self._fail(f"at step {int(self._first_bad)}")

    def _fail(self, when: str) -> NoReturn:
        raise RunError(f"the loss is not finite {when} (epoch {self.epoch}): the run stops")
