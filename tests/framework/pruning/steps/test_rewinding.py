"""Rewinding: the whole state goes back to its point after each pruning in training, and at no other time."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.framework.network.masks import PREFIX, Masks
from secateur.framework.plugins.registry import build
from secateur.framework.pruning.steps.by_schedule import AtMoments
from secateur.framework.pruning.steps.rewinding import Rewinder, check_rewinding
from secateur.framework.schedules.base import After, Before, During, Never
from secateur.framework.training.hooks import hookimpl, manager
from secateur.framework.training.loss import Loss
from secateur.framework.training.trainer import Parts, Settings, Trainer
from secateur.utils.errors import UsageError
from secateur.utils.loading.loaders import make_loaders
from secateur.utils.optimizers import unwrapped
from tests.networks import ConvNet, same, seeded
from tests.short_runs import Blobs


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Copies of parameters, buffers and everything the optimizer keeps, without the masks."""
    tensors = {**dict(trainer.model.named_parameters()), **dict(trainer.model.named_buffers())}
    found = {name: one.detach().clone() for name, one in tensors.items() if PREFIX not in name}
    state = unwrapped(trainer.optimizer).state
    for name, parameter in trainer.model.named_parameters():
        for key, value in state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{key} of {name}"] = value.clone()
    return found


class Witness:
    """Notes the state where each epoch begins and ends, and around each pruning."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Tensor]] = []
        self.ends: list[dict[str, Tensor]] = []
        self.rewound_to: list[tuple[int, int]] = []
        self.masks: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    @hookimpl
    def epoch_started(self, trainer: Trainer) -> None:
        """After whatever the end of the last epoch has done."""
        self.starts.append(state_of(trainer))
        self.masks.append({name: mask.clone() for name, mask in Masks(trainer.model).items()})
        self.rates.append(trainer.optimizer.param_groups[0]["lr"])

    @hookimpl(tryfirst=True)
    def epoch_ended(self, trainer: Trainer) -> None:
        """Before any pruning."""
        self.ends.append(state_of(trainer))

    @hookimpl
    def rewound(self, trainer: Trainer, to_epoch: int) -> None:
        """Note when."""
        self.rewound_to.append((trainer.epoch, to_epoch))


Run = Callable[..., tuple[Witness, Trainer]]


@pytest.fixture
def run() -> Run:
    """Train a small network with a criterion, a plan and a rewind point."""

    def call(
        criterion: str, plan: dict[int, list[float]], epoch: int | None, epochs: int = 5,
        optimizer: str = "ADAM", listeners: Sequence[Any] = (),
    ) -> tuple[Witness, Trainer]:  # fmt: skip
        model = seeded(ConvNet)
        loaders = make_loaders(Blobs(), batch_size=10, seed=0, val_share=0.25)
        options = {"momentum": 0.9} if optimizer == "SGD" else {}
        stepping = build("optimizers", optimizer, params=model.parameters(), lr=0.01, **options)
        schedule = torch.optim.lr_scheduler.StepLR(stepping, 1, 0.5)
        loss: Loss = build("losses", "CrossEntropy")
        parts = Parts(model, loss, stepping, loaders, schedule)
        trainer: Trainer = build("trainers", "DefaultTrainer", parts=parts, settings=Settings(epochs=epochs))
        witness = Witness()
        heard: list[Any] = [witness, AtMoments(build("criterions", criterion), plan), *listeners]
        if epoch is not None:
            heard.append(Rewinder(epoch))
        trainer.hooks = manager(heard).hook
        trainer.train()
        return witness, trainer

    return call


def expected_after(kept: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * masks[name] if name in masks else tensor for name, tensor in kept.items()}


@pytest.mark.parametrize("optimizer", ["ADAM", "SGD", "RMSPROP"])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_weights_biases_norms_and_moments_go_back_masked(run: Run, epoch: int, optimizer: str) -> None:
    witness, trainer = run("IMP", {1: [0.5], 3: [0.8]}, epoch, optimizer=optimizer)
    point = witness.starts[0] if epoch == 0 else witness.ends[epoch - 1]
    for after in (1, 3):
        assert same(witness.starts[after + 1], expected_after(point, witness.masks[after + 1]))
    assert not same(witness.starts[3], witness.starts[1])  # training had gone on in between
    moments = [name for name in witness.starts[2] if " of " in name]
    assert bool(moments) == (epoch > 0)
    assert witness.rewound_to == [(1, epoch), (3, epoch)]
    assert trainer.progress.rewinds == [
        {"after_epochs": 2, "to_epochs": epoch}, {"after_epochs": 4, "to_epochs": epoch}
    ]  # fmt: skip


def test_the_initial_weights_can_be_reached(run: Run) -> None:
    """A point saved again after the first epoch would lose them."""
    witness, _ = run("IMP", {2: [0.5]}, 0)
    weights = seeded(ConvNet).state_dict()
    assert torch.equal(witness.starts[3]["a.bias"], weights["a.bias"])
    assert torch.equal(witness.starts[3]["nb.running_var"], weights["nb.running_var"])
    kept = witness.masks[3]["b.weight"]
    assert torch.equal(witness.starts[3]["b.weight"], weights["b.weight"] * kept) and not kept.all()


def test_the_learning_rate_and_the_epochs_go_on(run: Run) -> None:
    rewound, _ = run("IMP", {1: [0.5], 2: [0.8]}, 0)
    plain, _ = run("IMP", {1: [0.5], 2: [0.8]}, None)
    assert rewound.rates == plain.rates == [0.01 * 0.5**epoch for epoch in range(5)]


def test_a_step_that_prunes_nothing_rewinds_nothing(run: Run) -> None:
    """Events after the target is reached must leave the trained weights alone."""
    witness, trainer = run("IMP", {0: [0.5], 1: [0.5], 2: [0.5], 3: [0.4]}, 0)
    assert witness.rewound_to == [(0, 0)]
    for epoch in (1, 2, 3):
        assert same(witness.starts[epoch + 1], witness.ends[epoch])
    assert len(trainer.progress.rewinds) == 1


def test_pruning_before_training_is_no_reason_to_rewind(run: Run) -> None:
    witness, _ = run("SNIP", {-1: [0.5], 2: [0.8]}, 0)
    assert witness.rewound_to == [(2, 0)]
    assert same(witness.starts[3], expected_after(witness.starts[0], witness.masks[3]))


class LastMasks:
    """Notes the masks when a moment's last step is done, before any rewinding."""

    def __init__(self) -> None:
        self.found: list[dict[str, Tensor]] = []

    @hookimpl(tryfirst=True)
    def moment_ended(self, trainer: Trainer) -> None:
        """The steps are over."""
        self.found.append({name: mask.clone() for name, mask in Masks(trainer.model).items()})


@pytest.mark.parametrize("criterion", ["IMP", "SNIPitDuring"])
def test_all_targets_of_a_moment_score_the_trained_network(run: Run, criterion: str) -> None:
    found = []
    for epoch in (0, None):
        listener = LastMasks()
        witness, trainer = run(criterion, {2: [0.5, 0.7, 0.9]}, epoch, listeners=[listener])
        found += listener.found
        assert witness.rewound_to == ([] if epoch is None else [(2, 0)])
        assert len(trainer.progress.rewinds) == (epoch is not None)
    assert len(found) == 2 and same(*found)
    assert sum(int(mask.sum()) for mask in found[0].values()) < 0.2 * sum(
        mask.numel() for mask in found[0].values()
    )


@pytest.mark.parametrize("criterion", ["SNAPitDuring", "CNIPitDuring"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_the_rewind_point_is_cut_with_the_network(run: Run, criterion: str, epoch: int) -> None:
    witness, trainer = run(criterion, {1: [0.3], 2: [0.6], 3: [0.8]}, epoch)
    point = witness.starts[0] if epoch == 0 else witness.ends[0]
    from secateur.framework.network.lineage import lineage_of

    kept = lineage_of(trainer.model).kept
    assert kept
    final = {}
    for name, tensor in point.items():
        plain = name.rpartition(" of ")[2]
        for (cut, dim), index in kept.items():
            if cut == plain and tensor.dim() > dim:
                tensor = tensor.index_select(dim, index)
        final[name] = tensor
    assert same(witness.starts[4], expected_after(final, witness.masks[4]))
    assert [moment for moment, _ in witness.rewound_to] == [1, 2, 3]


def test_the_optimizer_counts_its_steps_from_the_rewind_point(run: Run) -> None:
    witness, _ = run("IMP", {2: [0.001]}, 1)
    kept = witness.starts[3]
    assert kept["step of a.weight"].item() == 3  # batches of one epoch, not of three
    assert torch.equal(kept["exp_avg of nb.weight"], witness.ends[0]["exp_avg of nb.weight"])


@pytest.mark.parametrize(
    ("plan", "epoch", "words"),
    [
        (Never().plan(0.5, 10), 0, "is for criterions that prune during or after training"),
        (Before(7).plan(0.5, 10), 0, "is for criterions that prune during or after training"),
        (During(0, 1).plan(0.9, 10), 3, "rewind_to 3 is later than the first pruning, after 2 epochs"),
        (After().plan(0.9, 10), 10, "rewind_to 10 is later than the first pruning, after 9 epochs"),
        ({-1: [0.5], 3: [0.6]}, 1, "rewind_to 1 is later than the first pruning, before training"),
    ],
)
def test_a_point_that_is_never_passed_in_time_is_refused(plan: Any, epoch: int, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        check_rewinding(epoch, plan, 10)
    assert "\n" not in str(raised.value)


def test_points_up_to_the_first_pruning_are_fine() -> None:
    check_rewinding(6, During(4, 4).plan(0.98, 80), 80)  # the original's recipe for IMP
    check_rewinding(2, During(0, 1).plan(0.9, 10), 10)
    check_rewinding(0, {-1: [0.5], 3: [0.6]}, 10)
    check_rewinding(9, After().plan(0.9, 10), 10)
