"""DefaultTrainer: a plain loop that listeners hear, users change step by step, and nothing makes impure."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.criterions.SNAPitDuring import SNAPitDuring
from secateur.framework.commands.assemble import build_lr_schedule, build_optimizer
from secateur.framework.network.masks import Masks
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.steps.by_schedule import AtMoments
from secateur.framework.pruning.steps.pruner import Pruner
from secateur.framework.settings.run_config import RunConfig
from secateur.framework.training.hooks import HookSpecs, hookimpl, manager
from secateur.framework.training.loss import Loss
from secateur.framework.training.trainer import Parts, Settings, decay_groups
from secateur.losses.CrossEntropy import CrossEntropy
from secateur.trainers.DefaultTrainer import Batch, DefaultTrainer
from secateur.utils.classification import correct_samples
from secateur.utils.errors import RunError
from secateur.utils.loading.dataset import DataSet
from secateur.utils.loading.loaders import Loaders, make_loaders

SEED = 7


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    found: DataSet = build("datasets", "FASHION_MINI", data_dir=None, download=False)
    return found


@pytest.fixture
def loaders(dataset: DataSet) -> Callable[..., Loaders]:
    """Small loaders of FASHION_MINI, new ones for each call."""

    def make(**options: Any) -> Loaders:
        return make_loaders(
            dataset,
            **{"batch_size": 16, "seed": SEED, "limit_train_batches": 3, "limit_test_batches": 2, **options},
        )

    return make


@pytest.fixture
def make(loaders: Callable[..., Loaders]) -> Callable[..., DefaultTrainer]:
    """A trainer of a small network; listeners first, then what is to differ."""

    def make(
        *listeners: Any,
        cls: type[DefaultTrainer] = DefaultTrainer,
        loss: Loss | None = None,
        data: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        **settings: Any,
    ) -> DefaultTrainer:
        torch.manual_seed(SEED)
        config = RunConfig(**{"model": "LeNet5", "device": "cpu", "optimizer": "SGD", **(run or {})})
        model = build("models", config.model, in_channels=1, num_classes=10, image_size=28)
        optimizer = build_optimizer(config, model)
        parts = Parts(model, loss or CrossEntropy(), optimizer, loaders(**(data or {})))
        parts.lr_schedule = build_lr_schedule(config, optimizer)
        trainer = cls(parts, Settings(**{"epochs": 2, "seed": SEED, **settings}))
        trainer.hooks = manager(listeners).hook
        torch.manual_seed(SEED)  # dropout
        return trainer

    return make


Make = Callable[..., DefaultTrainer]


def state(trainer: DefaultTrainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("name", "cls"), [("SGD", torch.optim.SGD), ("ADAM", torch.optim.Adam)])
def test_the_weights_are_those_of_a_plain_loop_to_the_last_bit(
    make: Make, loaders: Callable[..., Loaders], name: str, cls: Any, fused: bool
) -> None:
    settings = {"optimizer": name, "fused": "on" if fused else "off", "l2_reg": 1e-3, "learning_rate": 0.01}
    trainer = make(run=settings, grad_clip=0.0)
    trainer.train()

    torch.manual_seed(SEED)
    model = build("models", "LeNet5", in_channels=1, num_classes=10, image_size=28)
    options = {"momentum": 0.9} if name == "SGD" else {}
    flat = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": [p for p in model.parameters() if p.dim() > 1]}, {"params": flat, "weight_decay": 0}]
    optimizer = cls(groups, lr=0.01, weight_decay=1e-3, fused=fused, **options)
    batches = loaders().train
    torch.manual_seed(SEED)
    for epoch in range(2):
        batches.epoch = epoch
        for inputs, targets in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    assert equal(state(trainer), dict(model.state_dict()))


def test_equal_seeds_give_equal_bits(make: Make) -> None:
    first, second, third = make(grad_noise=0.1), make(grad_noise=0.1), make(grad_noise=0.1, seed=SEED + 1)
    for trainer in (first, second, third):
        torch.manual_seed(SEED)
        trainer.train()
    assert equal(state(first), state(second))
    assert not equal(state(first), state(third))  # the noise is the run's own


class Diary:
    """Notes every hook with its arguments."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.entries]

    @hookimpl
    def run_started(self, trainer: Any) -> None:
        self.entries.append(("run_started", {"training": trainer.model.training}))

    @hookimpl
    def epoch_started(self, trainer: Any) -> None:
        self.entries.append(("epoch_started", {"epoch": trainer.epoch, "training": trainer.model.training}))

    @hookimpl
    def gradients_ready(self, trainer: Any) -> None:
        norm = sum(float(p.grad.square().sum()) for p in trainer.model.parameters())
        self.entries.append(("gradients_ready", {"step": trainer.progress.step, "norm": norm}))

    @hookimpl
    def batch_ended(self, trainer: Any, loss: Tensor) -> None:
        self.entries.append(("batch_ended", {"step": trainer.progress.step, "loss": loss}))

    @hookimpl
    def evaluated(self, trainer: Any, metrics: dict[str, float]) -> None:
        self.entries.append(("evaluated", dict(metrics)))

    @hookimpl
    def epoch_ended(self, trainer: Any, metrics: dict[str, float]) -> None:
        self.entries.append(("epoch_ended", dict(metrics)))

    @hookimpl
    def warned(self, trainer: Any, message: str) -> None:
        self.entries.append(("warned", {"message": message}))

    @hookimpl
    def training_ended(self, trainer: Any) -> None:
        self.entries.append(("training_ended", {}))

    @hookimpl
    def run_failed(self, trainer: Any, error: BaseException) -> None:
        self.entries.append(("run_failed", {"error": error}))


def test_hooks_are_heard_in_order_with_what_they_promise(make: Make) -> None:
    diary = Diary()
    make(diary, eval_freq=2).train()
    batch = ["gradients_ready", "batch_ended"]
    first = ["epoch_started", *batch, *batch, "evaluated", *batch, "epoch_ended"]  # after steps 2, 4 and 6
    second = ["epoch_started", *batch, "evaluated", *batch, *batch, "evaluated", "epoch_ended"]
    assert diary.names == ["run_started", *first, *second, "training_ended"]
    told: dict[str, list[dict[str, Any]]] = {}
    for name, entry in diary.entries:
        told.setdefault(name, []).append(entry)
    assert [entry["epoch"] for entry in told["epoch_started"]] == [0, 1]
    assert all(entry["training"] for entry in told["epoch_started"])
    assert [entry["step"] for entry in told["gradients_ready"]] == [0, 1, 2, 3, 4, 5]
    assert [entry["step"] for entry in told["batch_ended"]] == [1, 2, 3, 4, 5, 6]
    assert all(entry["norm"] > 0 for entry in told["gradients_ready"])
    assert all(entry["loss"].shape == () and not entry["loss"].requires_grad for entry in told["batch_ended"])
    assert all(set(entry) == {"acc/val", "loss/val"} for entry in told["evaluated"])
    every = {f"{key}/{part}" for key in ("acc", "loss") for part in ("train", "val")} | {"penalty/train"}
    assert all(set(entry) == every for entry in told["epoch_ended"])


def test_every_documented_hook_but_those_of_pruning_is_called_by_a_run(make: Make) -> None:
    diary = Diary()
    trainer = make(diary, eval_freq=1)
    trainer.train()
    trainer.warn("mind")
    trainer.loss = NaNAt(0)
    with pytest.raises(RunError):
        trainer.train()
    specified = {name for name in vars(HookSpecs) if not name.startswith("_")}
    assert set(diary.names) == specified - {"plugin_folders", "pruned", "moment_ended", "rewound"}
    assert trainer.progress.warnings == ["mind"]


def test_an_error_is_told_to_the_listeners_and_goes_on(make: Make) -> None:
    diary, error = Diary(), ZeroDivisionError("oops")

    class Broken:
        @hookimpl
        def epoch_started(self) -> None:
            raise error

    with pytest.raises(ZeroDivisionError):
        make(diary, Broken()).train()
    assert diary.names == ["run_started", "epoch_started", "run_failed"]
    assert diary.entries[-1][1]["error"] is error


@pytest.mark.parametrize("step", ["train", "train_epoch", "train_step", "evaluate"])
def test_each_step_can_be_overridden_alone(make: Make, step: str) -> None:
    calls: list[str] = []

    def override(self: Any, *arguments: Any) -> Any:
        calls.append(step)
        return getattr(DefaultTrainer, step)(self, *arguments)

    trainer = make(cls=type("Mine", (DefaultTrainer,), {step: override}))
    trainer.train()
    assert len(calls) == {"train": 1, "train_epoch": 2, "train_step": 6, "evaluate": 2}[step]
    plain = make()
    plain.train()
    assert equal(state(trainer), state(plain))


def test_what_train_step_returns_is_what_is_minimised(make: Make) -> None:
    class Still(DefaultTrainer):
        def train_step(self, batch: Batch) -> Tensor:
            return 0 * super().train_step(batch)

    trainer = make(cls=Still, run={"l2_reg": 0.0})
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    assert equal(before, {name: p.detach() for name, p in trainer.model.named_parameters()})


def test_masked_weights_are_zero_after_every_step_and_take_no_part_in_clipping(make: Make) -> None:
    wrong: list[str] = []

    class Watch:
        @hookimpl(trylast=True)
        def gradients_ready(self, trainer: Any) -> None:
            self._look(trainer, {n: p.grad for n, p in trainer.model.named_parameters()}, "gradient")

        @hookimpl
        def batch_ended(self, trainer: Any) -> None:
            self._look(trainer, dict(trainer.model.named_parameters()), "weight")

        def _look(self, trainer: Any, tensors: dict[str, Tensor], what: str) -> None:
            for name, mask in Masks(trainer.model).items():
                if tensors[name][mask == 0].any():
                    wrong.append(f"{what} {name} at {trainer.progress.step}")

    trainer = make(Pruner(build("criterions", "EmptyCrit"), {}), Watch(), run={"momentum": 0.9})
    weight = trainer.model.get_parameter("features.0.weight")
    Masks(trainer.model).hold({"features.0.weight": torch.rand(weight.shape) < 0.3})
    trainer.train()
    assert wrong == []
    assert 0 < int((weight == 0).sum()) < weight.numel()


def test_evaluate_leaves_every_mode_and_number_as_it_was(make: Make) -> None:
    trainer = make()
    trainer.model.train()
    trainer.model.get_submodule("features.1").eval()  # a frozen norm
    modes = [module.training for module in trainer.model.modules()]
    before, random = state(trainer), torch.random.get_rng_state()
    first = trainer.evaluate(trainer.loaders.test)
    assert [module.training for module in trainer.model.modules()] == modes
    assert equal(before, state(trainer))
    assert torch.equal(random, torch.random.get_rng_state())
    assert trainer.evaluate(trainer.loaders.test) == first


def test_evaluate_counts_samples_not_batches(make: Make) -> None:
    trainer = make(data={"batch_size": 256, "limit_test_batches": None})
    loader = trainer.loaders.val
    assert loader is not None
    sizes = [len(targets) for _, targets in loader]
    assert sizes == [256, 256, 88]
    trainer.model.eval()
    with torch.no_grad():
        outputs = torch.cat([trainer.model(inputs) for inputs, _ in loader])
    targets = torch.cat([targets for _, targets in loader])
    hits = outputs.argmax(dim=1) == targets
    found = trainer.evaluate(loader)
    assert found["acc"] == int(hits.sum()) / 600
    assert found["acc"] != pytest.approx(sum(float(part.float().mean()) for part in hits.split(256)) / 3, abs=1e-6)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(outputs, targets)), rel=1e-5)


def test_training_metrics_are_means_over_samples(make: Make) -> None:
    seen: list[tuple[int, float]] = []

    class Noting(DefaultTrainer):
        def train_step(self, batch: Batch) -> Tensor:
            loss = super().train_step(batch)
            seen.append((len(batch[0]), float(loss.detach())))
            return loss

    diary = Diary()
    trainer = make(
        diary, cls=Noting, epochs=1, data={"batch_size": 2048, "limit_train_batches": None, "val_share": 0.0}
    )
    trainer.train()
    assert [size for size, _ in seen] == [2048, 2048, 1904]
    metrics = dict(diary.entries)["epoch_ended"]
    assert metrics["loss/train"] == pytest.approx(sum(n * loss for n, loss in seen) / 6000, rel=1e-6)
    assert metrics["acc/train"] * 6000 == pytest.approx(round(metrics["acc/train"] * 6000), abs=1e-3)
    assert "acc/val" not in metrics


def test_correct_samples_are_counted() -> None:
    outputs = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0]])
    assert int(correct_samples(outputs, torch.tensor([1, 1, 1]))) == 2


def test_progress_counts_steps_samples_and_work(make: Make) -> None:
    trainer = make()
    trainer.train()
    assert (trainer.progress.step, trainer.progress.samples, trainer.epoch) == (6, 96, 1)
    assert trainer.progress.cumulative_macs == 3 * 497_160 * 96


class NaNAt(Loss):
    """Cross-entropy that is not a number at one training step."""

    def __init__(self, step: int, bad: float = math.nan) -> None:
        super().__init__()
        self._left, self._bad = step, bad

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        if not outputs.requires_grad:
            return loss
        self._left -= 1
        return loss * self._bad if self._left < 0 else loss


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_loss_that_is_not_finite_stops_training_before_it_reaches_the_weights(
    make: Make, step: int, bad: float
) -> None:
    diary = Diary()
    trainer = make(diary, loss=NaNAt(step, bad))
    with pytest.raises(RunError, match=rf"not finite at step {step} \(epoch {step // 3}\)"):
        trainer.train()
    assert trainer.progress.step == step
    assert diary.names.count("batch_ended") == step
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trainer.model.parameters())


def test_weights_that_broke_in_the_last_step_are_noticed(make: Make) -> None:
    class Break:
        @hookimpl
        def batch_ended(self, trainer: Any) -> None:
            if trainer.progress.step == 3:
                with torch.no_grad():
                    next(trainer.model.parameters()).fill_(math.nan)

    with pytest.raises(RunError, match="in the evaluation after 3 steps"):
        make(Break(), epochs=1).train()
    trainer = make(Break(), epochs=1, data={"val_share": 0.0})
    trainer.train()  # nothing to evaluate on
    with pytest.raises(RunError, match="in the evaluation after 3 steps"):
        trainer.evaluate(trainer.loaders.test)


def step_length(trainer: DefaultTrainer) -> float:
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    moved = [p.detach() - old for p, old in zip(trainer.model.parameters(), before, strict=True)]
    return float(torch.linalg.vector_norm(torch.cat([part.flatten() for part in moved])))


def test_the_gradient_is_clipped_to_its_norm(make: Make) -> None:
    plain = {"momentum": 0.0, "l2_reg": 0.0, "learning_rate": 1.0}
    one = {"epochs": 1, "data": {"limit_train_batches": 1, "val_share": 0.0}, "run": plain}
    assert step_length(make(grad_clip=0.01, **one)) == pytest.approx(0.01, rel=1e-3)
    free = step_length(make(grad_clip=0.0, **one))
    assert free > 0.5
    assert step_length(make(grad_clip=-1.0, **one)) == free  # off
    assert step_length(make(grad_clip=1e6, **one)) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping_is_that_of_torch_to_rounding(make: Make, limit: float) -> None:
    trainer = make(grad_clip=limit)
    parameters = list(trainer.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    gradients = [parameter.grad.double() for parameter in parameters if parameter.grad is not None]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    trainer._clip(limit)
    factor = min(1.0, limit / float(norm))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, (factor * gradient).float())


def test_noise_of_the_given_deviation_is_added_to_every_gradient(make: Make) -> None:
    plain = {"momentum": 0.0, "l2_reg": 0.0, "learning_rate": 1.0}
    one: dict[str, Any] = {"epochs": 1, "data": {"limit_train_batches": 1, "val_share": 0.0}, "run": plain}
    quiet, noisy = make(grad_clip=0.0, **one), make(grad_clip=0.0, grad_noise=0.5, **one)
    for trainer in (quiet, noisy):
        torch.manual_seed(SEED)
        trainer.train()
    noise = torch.cat(
        [
            (two - one_).detach().flatten()
            for one_, two in zip(quiet.model.parameters(), noisy.model.parameters(), strict=True)
        ]
    )
    assert float(noise.std()) == pytest.approx(0.5, rel=0.01)
    assert abs(float(noise.mean())) < 0.01


TORCH_SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[Any], Any] | None]] = {
    "none": ({}, None),
    "step": ({"lr_step": 2, "lr_gamma": 0.5}, lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5)),
    "multistep": (
        {"lr_milestones": (1, 3), "lr_gamma": 0.1},
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3], 0.1),
    ),
    "cosine": ({}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5)),
}


@pytest.mark.parametrize("name", TORCH_SCHEDULES)
def test_the_learning_rate_falls_as_torch_lets_it(make: Make, name: str) -> None:
    options, torch_schedule = TORCH_SCHEDULES[name]
    seen: list[float] = []

    class Watch:
        @hookimpl
        def epoch_started(self, trainer: Any) -> None:
            (rate,) = {group["lr"] for group in trainer.optimizer.param_groups}
            seen.append(rate)

    run = {"lr_schedule": name, "learning_rate": 0.2, "epochs": 5, **options}
    make(Watch(), run=run, epochs=5, data={"limit_train_batches": 1, "val_share": 0.0}).train()
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule = torch_schedule(optimizer) if torch_schedule else None
    expected = []
    for _ in range(5):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    assert seen == expected
    assert name == "none" or seen[-1] < seen[0]


def test_a_time_limit_ends_training_after_the_batch_under_way(make: Make) -> None:
    diary = Diary()
    trainer = make(diary, epochs=5, max_training_minutes=1e-9)
    trainer.train()
    assert trainer.progress.step == 1
    assert diary.names[-2:] == ["epoch_ended", "training_ended"]
    assert "max_training_minutes" in str(trainer.progress.stopped)


@pytest.mark.parametrize("minutes", [0.0, -1.0])
def test_no_time_limit_is_no_limit(make: Make, minutes: float) -> None:
    trainer = make(max_training_minutes=minutes)
    trainer.train()
    assert trainer.progress.step == 6 and trainer.progress.stopped is None


def test_no_epoch_trains_nothing_and_ends_well(make: Make) -> None:
    diary = Diary()
    trainer = make(diary, epochs=0)
    before = state(trainer)
    trainer.train()
    assert diary.names == ["run_started", "training_ended"]
    assert equal(before, state(trainer))


@pytest.mark.parametrize("optimizer", ["SGD", "ADAM", "RMSPROP"])
def test_weight_decay_moves_weights_and_leaves_norms_and_biases(make: Make, optimizer: str) -> None:
    class Still(DefaultTrainer):
        def train_step(self, batch: Batch) -> Tensor:
            return sum((0 * parameter).sum() for parameter in self.model.parameters())

    trainer = make(cls=Still, run={"optimizer": optimizer, "l2_reg": 0.1, "learning_rate": 0.1}, epochs=1)
    before = dict(trainer.model.named_parameters())
    old = {name: parameter.detach().clone() for name, parameter in before.items()}
    trainer.train()
    kinds = {name: parameter.dim() > 1 for name, parameter in before.items()}
    assert {True, False} == set(kinds.values())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, old[name]) != kinds[name], name
        if kinds[name]:
            assert parameter.norm() < old[name].norm()


def test_no_group_of_the_optimizer_is_empty() -> None:
    one = nn.Parameter(torch.zeros(3))
    assert decay_groups([one]) == [{"params": [one], "weight_decay": 0.0}]
    two = nn.Parameter(torch.zeros(3, 1))
    assert decay_groups([two]) == [{"params": [two]}]
    assert [group["params"] for group in decay_groups([one, two])] == [[two], [one]]


def test_the_memory_format_reaches_weights_and_batches(make: Make) -> None:
    layouts = []

    class Watch(DefaultTrainer):
        def train_step(self, batch: Batch) -> Tensor:
            layouts.append(batch[0].is_contiguous(memory_format=torch.channels_last))
            return super().train_step(batch)

    trainer = make(cls=Watch, memory_format=torch.channels_last, epochs=1)
    trainer.train()
    weight = trainer.model.get_parameter("features.4.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert layouts == [True] * 3


class Surgeon:
    """Prunes after the first epoch and compares the optimizer's momentum before and after."""

    def __init__(self) -> None:
        self.pruner = AtMoments(SNAPitDuring(), {0: [0.5]}, seed=SEED)
        self.before: dict[str, Tensor] = {}
        self.checked = 0

    @staticmethod
    def momentum(trainer: Any) -> dict[str, Tensor]:
        inner = trainer.optimizer.optimizer
        decayed, plain = (group["params"] for group in inner.param_groups)
        assert {*decayed, *plain} == set(trainer.model.parameters()) == set(inner.state)
        assert all(p.dim() > 1 for p in decayed) and all(p.dim() < 2 for p in plain)
        return {name: inner.state[p]["momentum_buffer"] for name, p in trainer.model.named_parameters()}

    @hookimpl(tryfirst=True)
    def epoch_ended(self, trainer: Any) -> None:
        self.before = {name: buffer.clone() for name, buffer in self.momentum(trainer).items()}

    @hookimpl
    def pruned(self, trainer: Any) -> None:
        after = self.momentum(trainer)
        assert all(after[name].shape == p.shape for name, p in trainer.model.named_parameters())
        keep = {name: mask.nonzero().flatten() for name, mask in self.pruner.events[-1].keep.items()}
        first, second = keep["features.0"], keep["features.4"]
        assert torch.equal(after["features.0.weight"], self.before["features.0.weight"][first])
        assert torch.equal(after["features.4.weight"], self.before["features.4.weight"][second][:, first])
        self.checked += 1


def test_momentum_survives_a_cut_during_training(make: Make) -> None:
    surgeon = Surgeon()
    trainer = make(surgeon, surgeon.pruner, epochs=2)
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    trainer.train()
    assert surgeon.checked == 1
    assert sum(parameter.numel() for parameter in trainer.model.parameters()) < 0.6 * size
    assert trainer.macs < 497_160
    assert trainer.progress.step == 6  # and it trained on with what was left
