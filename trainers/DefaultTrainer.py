import math
import time
from typing import Any, NoReturn

import torch
from accelerate import DistributedType
from torch import Tensor

from secateur import RunError, Trainer
from secateur.framework.network.preserve import evaluating
from secateur.framework.training.trainer import Parts, Settings
from secateur.utils.classification import confusion_counts, correct_samples
from secateur.utils.loading.batches import BatchLoader
from secateur.utils.optimizers import unwrapped

Batch = tuple[Tensor, Tensor]
#: number of steps between two checks for losses that are not finite, on an accelerator
WATCH_EVERY = 50


class DefaultTrainer(Trainer):
    """Trainer for supervised classification.

    Every epoch runs over the training set and evaluates the network on the validation set, if there is one.
    Pruning, logging and saving are listeners and not part of the loop. Override `train_step`, `train_epoch`,
    `penalty`, `train` or `evaluate` to change a part of it.

    Args:
        parts: model, loss, optimizer, loaders, scheduler of the learning rate, and hooks.
        settings: settings of the training loop: epochs, gradient clipping and noise, temperature, seed, and
            others.
        options: options of a subclass, by keyword; each becomes an attribute of the instance.

    Raises:
        RunError: in `train` and `evaluate`, if the loss is not finite or there are no samples to evaluate.

    Example:
        >>> from secateur import DefaultTrainer
        >>> class LastLayer(DefaultTrainer):  # trainers/LastLayer.py: `--train_scheme LastLayer`
        ...     def train_step(self, batch):
        ...         loss = super().train_step(batch)
        ...         return loss + 0.01 * list(self.model.parameters())[-1].square().sum()
        >>> LastLayer.keeps_best
        True
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
        """Train for all epochs and evaluate on the validation set after each."""
        minutes = self.settings.max_training_minutes
        self._deadline = time.monotonic() + 60 * minutes if minutes > 0 else float("inf")
        try:
            self.hooks.run_started(trainer=self)
            for epoch in range(self.settings.epochs):
                self.progress.epoch = epoch
                metrics = self.train_epoch() | self._validated()
                self.hooks.epoch_ended(trainer=self, metrics=metrics)
                if self.progress.stopped:
                    break
            self.finish()
            self.hooks.training_ended(trainer=self)
        except BaseException as error:
            self.hooks.run_failed(trainer=self, error=error)
            raise

    def train_epoch(self) -> dict[str, float]:
        """Train for one epoch; return the means over its samples, such as `acc/train` and `loss/train`."""
        self._totals, self._samples = {}, 0
        self.model.train()
        self.hooks.epoch_started(trainer=self)
        self.loaders.train.epoch = self.epoch
        title = f"epoch {self.epoch + 1}/{self.settings.epochs}"
        for batch in self.track(self.loaders.train, title, len(self.loaders.train)):
            self._update(batch)
            due = self.settings.eval_freq and self.progress.step % self.settings.eval_freq == 0
            if due and self.loaders.val is not None:
                self.hooks.evaluated(trainer=self, metrics=self._validated())
            if time.monotonic() > self._deadline:
                self.progress.stopped = f"max_training_minutes ({self.settings.max_training_minutes:g}) reached"
                break
        self._raise_if_bad()
        if self.lr_schedule is not None:
            self.lr_schedule.step()
        return {f"{key}/train": float(total) / self._samples for key, total in self._totals.items()}

    def train_step(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar to minimise, and record its metrics.

        Args:
            batch: inputs and targets on the device.
        """
        inputs, targets = batch
        outputs = self.model(inputs)
        loss, penalty = self.loss(self.softened(outputs), targets), self.penalty()
        self.record(len(inputs), loss=loss, penalty=penalty, acc=correct_samples(outputs, targets) / len(inputs))
        return loss + penalty

    def softened(self, outputs: Tensor) -> Tensor:
        """Return the logits divided by the temperature of training (`--T`)."""
        return outputs if self.settings.temperature == 1 else outputs / self.settings.temperature

    def penalty(self) -> Tensor:
        """Return the scalar that is added to the task loss in training; default: the penalty of the loss."""
        return self.loss.penalty(self.model)

    @torch.inference_mode()
    def evaluate(self, loader: BatchLoader) -> dict[str, float]:
        """Evaluate the network in eval mode on all samples of a loader, and set `confusion`.

        Args:
            loader: batches to evaluate.

        Returns:
            `acc` (share of correct samples) and `loss` (mean over samples).

        Raises:
            RunError: if the loss is not finite, which makes the accuracy meaningless, or if there are no samples.
        """
        samples = 0
        total = table = torch.zeros((), dtype=torch.int64, device=self.example_input.device)
        with evaluating(self.model):
            for inputs, targets in self.track(loader, "evaluate", len(loader)):
                outputs = self.model(inputs)
                total = total + self.loss(outputs, targets) * len(inputs)
                table = table + confusion_counts(outputs, targets)
                samples += len(inputs)
        if samples == 0:
            raise RunError("no sample to evaluate: the loader is empty")
        self.confusion = table
        result = {"acc": float(table.trace()) / samples, "loss": float(total) / samples}
        if not math.isfinite(result["loss"]):
            self._fail(f"in the evaluation after {self.progress.step} steps")
        return result

    def record(self, samples: int, **values: Tensor) -> None:
        """Add batch means to the metrics of the epoch; they remain on the device until its end."""
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
        """Whether the wrappers of accelerate only forward calls, at a cost of 0.5 ms per step."""
        accelerator = self.accelerator
        alone = accelerator.distributed_type == DistributedType.NO and accelerator.scaler is None
        return alone and accelerator.sync_gradients

    def _stepping(self) -> Any:
        """Return the optimizer in its wrapper, or the plain optimizer where both are equivalent."""
        return unwrapped(self.optimizer) if self._alone() else self.optimizer

    def _clip(self, limit: float) -> None:
        """Clip the gradients to an L2 norm of `limit`; on the CPU nothing is scaled if the norm is smaller."""
        if not self._alone() or self.example_input.device.type != "cpu":
            self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
            return
        # of the optimizer: a walk over the modules would take a quarter of the time of clipping
        parameters = [p for group in unwrapped(self.optimizer).param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([grad for p in parameters if (grad := p.grad) is not None])
        if not float(norm) + 1e-6 < limit:  # not `norm >= limit`, which is false for NaN
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)

    def _add_noise(self) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                noise = torch.randn(parameter.shape, generator=self._noise, device=parameter.device)
                parameter.grad += self.settings.grad_noise * noise

    def _validated(self) -> dict[str, float]:
        """Return the results on the validation set; none if there is no such set."""
        val = self.loaders.val
        return {} if val is None else {f"{key}/val": value for key, value in self.evaluate(val).items()}

    def _watch(self, loss: Tensor) -> None:
        """Raise RunError at the first loss that is not finite; on an accelerator, check every few steps."""
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
        raise RunError(f"the loss is not finite {when} (epoch {self.epoch}): the run is stopped")
