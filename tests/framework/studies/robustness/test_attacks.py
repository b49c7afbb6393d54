"""The attacks against classifiers whose answers are known, and what counts as an adversarial."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.settings.attacks import ATTACKS, EPSILONS, chosen_attacks
from secateur.framework.studies.robustness import attacking
from secateur.framework.studies.robustness.assess import assess
from secateur.framework.studies.robustness.attacking import Effort, Outcome, run_attack, settings_of
from secateur.framework.studies.robustness.points import PixelModel, Points, distances, predictions
from secateur.framework.training.tester import Network
from secateur.utils.errors import UsageError
from tests.framework.studies.robustness.linear import grey_points, linear, smallest
from tests.networks import randomise, seeded

QUICK = Effort(steps=30, rounds=3)


def attacked(
    name: str, model: PixelModel, points: Points, epsilons: Any = None, effort: Effort | None = None
) -> Outcome:
    attack = ATTACKS[name]
    torch.manual_seed(0)
    right = predictions(model, points.pixels, 100) == points.targets
    return run_attack(attack, model, points, right, epsilons or EPSILONS[attack.norm], effort or Effort(),
                      show=range(len(points)))  # fmt: skip


def small_net(seed: int = 0) -> PixelModel:
    """A little convolutional network of 8 x 8 images, 5 classes, with a normalisation that matters."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 5)
        )

    return PixelModel(randomise(seeded(make, seed)).eval(), (0.3,), (0.35,))


def images(model: PixelModel, count: int = 40, seed: int = 0) -> Points:
    """Random images; nine in ten targets are what the network says."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 1, 8, 8, generator=generator)
    targets = model(pixels).argmax(dim=1)
    targets[::10] = (targets[::10] + 1) % 5
    return Points(pixels, targets)


# With more than two classes DDN follows the cross-entropy, which points between the other classes.
@pytest.mark.parametrize(
    ("name", "classes", "above"),
    [
        ("L2DeepFoolAttack", 2, 1.022), ("CarliniWagner", 2, 1.02), ("DDNAttack", 2, 1.005),
        ("L2DeepFoolAttack", 4, 1.022), ("CarliniWagner", 4, 1.16), ("DDNAttack", 4, 1.3),
    ],
)  # fmt: skip
def test_minimal_attacks_come_close_to_the_distance_of_a_linear_boundary(
    name: str, classes: int, above: float
) -> None:
    plain = linear(classes)
    model = PixelModel(plain, (0.0,), (1.0,))
    points = grey_points(model)
    truth = smallest(plain, points.pixels, dual=2)
    found = attacked(name, model, points).distance
    assert (found >= truth * (1 - 1e-9)).all()
    assert (found <= truth * above).all()


@pytest.mark.parametrize("name", ["FGSM", "LinfPGD"])
def test_linf_attacks_break_a_linear_classifier_exactly_from_the_margin_on(name: str) -> None:
    plain = linear()
    model = PixelModel(plain, (0.0,), (1.0,))
    points = grey_points(model)
    truth = smallest(plain, points.pixels, dual=1)
    # between the points' own thresholds, and a hair above and below each
    epsilons = sorted([*(1.001 * truth).tolist(), *(0.999 * truth).tolist()])
    outcome = attacked(name, model, points, epsilons)
    assert torch.equal(outcome.broken, truth[None] <= torch.tensor(epsilons, dtype=torch.float64)[:, None])
    assert 0 < int(outcome.broken.sum()) < outcome.broken.numel()


def test_an_l1_step_along_the_gradient_needs_what_the_formula_says() -> None:
    plain = linear()
    model = PixelModel(plain, (0.0,), (1.0,))
    points = grey_points(model)
    weight = plain[1].weight.detach()  # type: ignore[index,union-attr]
    apart = weight[0] - weight[1]
    # a step of size e along g / ||g||_1 changes the margin by e * ||w||_2^2 / ||w||_1
    logits = model(points.pixels).detach()
    truth = (logits[:, 0] - logits[:, 1]).abs() * apart.abs().sum() / apart.square().sum()
    epsilons = [0.5, 1.0, 2.0, 4.0]
    outcome = attacked("L1FastGradientAttack", model, points, epsilons)
    assert torch.equal(outcome.broken, truth[None] < torch.tensor(epsilons, dtype=torch.float64)[:, None])


@pytest.mark.parametrize("name", ["FGSM", "LinfPGD", "L2DeepFoolAttack"])
def test_epsilons_are_of_pixels_whatever_the_normalisation(name: str) -> None:
    bare, scaled = linear(), linear(mean=0.2859, std=0.3534)
    one, other = PixelModel(bare, (0.0,), (1.0,)), PixelModel(scaled, (0.2859,), (0.3534,))
    points = grey_points(one)
    torch.testing.assert_close(other(points.pixels), one(points.pixels))
    first, second = attacked(name, one, points), attacked(name, other, points)
    assert torch.equal(first.broken, second.broken)
    torch.testing.assert_close(first.distance, second.distance)


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_tells_the_truth_about_what_it_broke(name: str) -> None:
    model = small_net()
    points = images(model)
    effort = Effort(steps=60 if name == "SaltAndPepperNoiseAttack" else 20, rounds=3, batch_size=16)
    outcome = attacked(name, model, points, effort=effort)
    wrong = predictions(model, points.pixels, 100) != points.targets
    assert torch.equal(wrong, outcome.distance == 0) and int(wrong.sum()) == 4
    assert outcome.broken[:, wrong].all()
    assert (outcome.broken[1:] | ~outcome.broken[:-1]).all()  # a larger epsilon breaks no less
    assert bool((outcome.broken[-1] & ~wrong).any())
    norm = outcome.attack.norm
    for at, image in outcome.adversarials.items():
        assert float(image.min()) >= 0 and float(image.max()) <= 1
        assert int(model(image[None]).argmax()) != int(points.targets[at])
        apart = float(distances(image[None], points.pixels[at][None], norm))
        assert apart == pytest.approx(float(outcome.distance[at]), rel=1e-6)
    assert set(outcome.adversarials) == set((outcome.distance.isfinite() & ~wrong).nonzero().flatten().tolist())
    if not outcome.attack.minimal:
        for row, epsilon in zip(outcome.broken, outcome.epsilons, strict=True):
            assert (outcome.distance[row] <= epsilon * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_equal_seeds_give_equal_numbers(name: str) -> None:
    model = small_net()
    points = images(model, 12)
    one, other = (attacked(name, model, points, effort=QUICK) for _ in range(2))
    assert torch.equal(one.broken, other.broken) and torch.equal(one.distance, other.distance)


class Liar:
    """An attack that claims success with what is none, once for each way to cheat."""

    def __init__(self, cheat: str) -> None:
        self.cheat = cheat

    def __call__(self, model: Any, pixels: Tensor, targets: Tensor, *, epsilons: Any) -> tuple[Any, Tensor, Any]:
        fake = {
            "the image as it was": pixels.clone(),
            "not a number": torch.full_like(pixels, torch.nan),
            "too far": 1 - pixels,
        }[self.cheat]
        return None, fake, torch.ones(len(pixels), dtype=torch.bool)


@pytest.mark.parametrize("cheat", ["the image as it was", "not a number", "too far"])
def test_an_attack_is_not_taken_at_its_word(monkeypatch: pytest.MonkeyPatch, cheat: str) -> None:
    model = small_net()
    points = images(model)
    monkeypatch.setattr(attacking, "make_attack", lambda *_: Liar(cheat))
    outcome = attacked("FGSM", model, points, [0.01, 0.02])
    assert outcome.broken.sum(dim=1).tolist() == [4, 4]  # those that were wrong before
    assert outcome.adversarials == {}


def test_pixels_outside_the_range_are_brought_back_before_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    points = images(model)
    points.pixels[:] = 1.0
    points = Points(points.pixels, model(points.pixels).argmax(dim=1))

    class Beyond(Liar):
        def __call__(self, model: Any, pixels: Tensor, targets: Tensor, *, epsilons: Any) -> Any:
            return None, pixels + 5, None

    monkeypatch.setattr(attacking, "make_attack", lambda *_: Beyond(""))
    assert not attacked("FGSM", model, points, [9.0]).broken.any()


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.minimal])
def test_what_lies_too_far_away_is_tried_again_at_epsilon_as_foolbox_does(name: str) -> None:
    model = small_net()
    points = images(model, 60)
    epsilons = [0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0]
    effort = Effort(steps=60 if name == "SaltAndPepperNoiseAttack" else 12, rounds=2, batch_size=100)
    outcome = attacked(name, model, points, epsilons, effort)
    right = predictions(model, points.pixels, 100) == points.targets
    torch.manual_seed(0)
    made = attacking.make_attack(outcome.attack, outcome.settings)
    wrapped = attacking.foolbox().PyTorchModel(model, bounds=(0, 1))
    _, _, success = made(wrapped, points.pixels[right], points.targets[right], epsilons=epsilons)
    assert not (success & ~outcome.broken[:, right]).any()  # whatever foolbox breaks; and not before
    assert torch.equal(success.cummax(dim=0).values, outcome.broken[:, right])


def test_a_clipped_adversarial_counts_only_if_the_network_is_wrong_about_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Salt and pepper goes far at once: parts of its way are enough for some images, and not for others."""
    model = small_net()
    points = images(model, 60)
    epsilons = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    outcome = attacked("SaltAndPepperNoiseAttack", model, points, epsilons, Effort(steps=60))
    monkeypatch.setattr(attacking._Search, "_nearer", lambda *_: None)
    raw = attacked("SaltAndPepperNoiseAttack", model, points, epsilons, Effort(steps=60))
    limits = torch.tensor(epsilons, dtype=torch.float64)[:, None]
    assert torch.equal(outcome.broken, outcome.distance <= limits * (1 + 1e-5) + 1e-6)
    assert (outcome.distance <= raw.distance + 1e-12).all()
    nearer = outcome.distance < raw.distance
    assert bool(nearer.any()) and bool((~nearer & (raw.distance > 1.0)).any())
    assert bool(
        ((outcome.distance[nearer] - limits).abs().min(dim=0).values < 1e-5).all()
    )  # cut off at one of them
    for at in nearer.nonzero().flatten().tolist():
        image = outcome.adversarials[at]
        assert int(model(image[None]).argmax()) != int(points.targets[at])
        apart = float(distances(image[None], points.pixels[at][None], "L2"))
        assert apart == pytest.approx(float(outcome.distance[at]), rel=1e-6)


def test_outputs_that_are_no_numbers_are_broken_and_the_signs_agree() -> None:
    class Fragile(nn.Module):
        """Right about grey images, and says nothing about any other."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, pixels: Tensor) -> Tensor:
            apart = (pixels - 0.5).flatten(1).abs().amax(dim=1, keepdim=True)
            outputs = self.scale * torch.tensor([[2.0, 1.0]]) + 0.01 * pixels.flatten(1)[:, :2]
            return torch.where(apart > 1e-4, torch.nan, outputs)

    points = Points(torch.full((12, 1, 4, 4), 0.5), torch.zeros(12, dtype=torch.int64))
    attacks = chosen_attacks("FGSM")
    found = assess(Network("net", Fragile().eval()), points, attacks, {"Linf": (0.1,)}, Effort(), seed=0)
    assert found.outcomes[0].broken.all()
    assert "random perturbations" not in str(found.sanity)


def test_deepfool_in_two_stages_finds_what_it_finds_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    points = images(model)
    staged = attacked("L2DeepFoolAttack", model, points)
    monkeypatch.setattr(attacking._Search, "_staged", attacking._Search._attacked)
    whole = attacked("L2DeepFoolAttack", model, points)
    assert torch.equal(staged.broken, whole.broken)
    torch.testing.assert_close(staged.distance, whole.distance, rtol=1e-5, atol=1e-6)


class Counting(nn.Module):
    """Says class 0 until an image has been seen with noise `patience` times, then class 1; black images never."""

    def __init__(self, patience: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.patience, self.seen, self.sizes = patience, torch.zeros_like(patience), []

    def forward(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        at = (pixels[:, 0, 0, 0] * 100).round().long()  # this pixel is each image's number, and gets no noise
        noisy = pixels[:, 0, 1].std(dim=1) > 1e-4
        self.seen[at[noisy]] += 1
        fooled = noisy & (self.seen[at] > self.patience[at])
        return nn.functional.one_hot(fooled.long(), 2).float() * self.scale


def test_noise_is_drawn_as_often_for_each_image_as_asked_and_not_for_those_that_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patience = torch.tensor([1000, 0, 14, 1000, 3])
    pixels = torch.full((5, 1, 4, 4), 0.5)
    pixels[:, 0, 0, 0] = torch.arange(5) / 100
    network = Counting(patience)
    model = PixelModel(network, (0.0,), (1.0,)).eval()
    points = Points(pixels, torch.zeros(5, dtype=torch.int64))
    made = attacking.make_attack

    def still(*arguments: Any) -> Any:
        attack = made(*arguments)
        draw = attack.sample_noise

        def noise(x: Any) -> Any:
            drawn = draw(x)
            drawn.raw[:, 0, 0, 0] = 0
            return drawn

        attack.sample_noise = noise
        return attack

    monkeypatch.setattr(attacking, "make_attack", still)
    attacked("L2RepeatedAdditiveGaussianNoiseAttack", model, points, (0.5,), Effort(steps=100))
    checks = network.seen - torch.tensor([100, 10, 30, 100, 10])  # looks at what a stage has found, draws are not
    assert bool(((checks >= 0) & (checks <= 5)).all()), network.seen
    assert network.sizes.count(5) < 20 and network.sizes.count(2) >= 70


def test_noise_in_stages_breaks_as_many_as_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net()
    points = images(model, 400)
    name, epsilons = "L2RepeatedAdditiveGaussianNoiseAttack", (3.0, 5.0)
    staged = attacked(name, model, points, epsilons)
    monkeypatch.setattr(attacking._Search, "_staged", attacking._Search._attacked)
    whole = attacked(name, model, points, epsilons)
    assert not torch.equal(staged.distance, whole.distance)  # other draws of the same noise
    shares = [one.broken.double().mean(dim=1) for one in (staged, whole)]
    assert 0.2 < float(shares[1].min()) <= float(shares[1].max()) < 0.95
    assert float((shares[0] - shares[1]).abs().max()) < 0.06


def test_points_that_are_broken_leave_and_points_that_are_wrong_are_not_attacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_net()
    points = images(model)
    sizes: list[int] = []
    made = attacking.make_attack

    def watched(*arguments: Any) -> Any:
        attack = made(*arguments)

        def call(model: Any, pixels: Tensor, targets: Tensor, *, epsilons: Any) -> Any:
            sizes.append(len(pixels))
            return attack(model, pixels, targets, epsilons=epsilons)

        return call

    monkeypatch.setattr(attacking, "make_attack", watched)
    outcome = attacked("LinfPGD", model, points)
    left = (~outcome.broken).sum(dim=1).tolist()
    assert sizes == [36, *(count for count in left[:-1] if count)]


def test_restarts_of_a_random_attack_break_no_less() -> None:
    model = small_net()
    points = images(model)
    once = attacked("SaltAndPepperNoiseAttack", model, points, effort=Effort(steps=20))
    often = attacked("SaltAndPepperNoiseAttack", model, points, effort=Effort(steps=20, restarts=4))
    assert (often.distance <= once.distance).all() and bool((often.distance < once.distance).any())


def test_effort_reaches_the_attack_and_steps_of_pgd_go_as_far_as_before() -> None:
    assert settings_of(ATTACKS["CarliniWagner"], Effort(10000, 9, options={"stepsize": 0.01})) == {
        "steps": 10000, "binary_search_steps": 9, "stepsize": 0.01, "initial_const": 1.0,
    }  # fmt: skip
    assert settings_of(ATTACKS["L2RepeatedAdditiveGaussianNoiseAttack"], Effort(7)) == {"repeats": 7}
    assert settings_of(ATTACKS["FGSM"], Effort(7)) == {}
    for steps in (None, 10, 200):
        settings = settings_of(ATTACKS["LinfPGD"], Effort(steps))
        assert settings["steps"] * settings["rel_stepsize"] == pytest.approx(2.5)
    with pytest.raises(UsageError, match="did you mean 'stepsize'"):
        attacking.make_attack(ATTACKS["CarliniWagner"], {"stepsiz": 1})


def test_an_assessment_leaves_the_network_and_its_gradients_alone() -> None:
    model = small_net().model
    before = copy.deepcopy(model.state_dict())
    model[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    points = images(PixelModel(model, (0.3,), (0.35,)), 12)
    network = Network("net", model, (0.3,), (0.35,))
    assess(network, points, chosen_attacks("FGSM,DDNAttack"), EPSILONS, QUICK, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]


def test_what_an_attack_finds_does_not_depend_on_the_others() -> None:
    model = small_net()
    points = images(model, 12)
    network = Network("net", model.model, (0.3,), (0.35,))
    both = assess(network, points, chosen_attacks("SaltAndPepperNoiseAttack,LinfPGD"), EPSILONS, QUICK, seed=3)
    alone = assess(network, points, chosen_attacks("LinfPGD"), EPSILONS, QUICK, seed=3)
    assert torch.equal(both.outcomes[1].broken, alone.outcomes[0].broken)
    assert torch.equal(both.outcomes[1].distance, alone.outcomes[0].distance)


def test_a_bar_moves_with_the_passes_and_reaches_its_end() -> None:
    model = small_net()
    points = images(model, 12)
    seen: list[tuple[str, int, int]] = []

    def track(items: Any, title: str, total: int) -> Any:
        done = 0
        try:
            for item in items:
                done += 1
                yield item
        finally:
            seen.append((title, done, total))

    right = predictions(model, points.pixels, 100) == points.targets
    run_attack(ATTACKS["LinfPGD"], model, points, right, [0.01, 0.3], Effort(steps=10), track=track)
    ((title, done, total),) = seen
    assert title == "LinfPGD" and done == total > 20


def test_a_network_that_is_never_right_is_not_attacked() -> None:
    model = small_net()
    points = images(model, 12)
    wrong = Points(points.pixels, (model(points.pixels).argmax(dim=1) + 1) % 5)
    network = Network("net", model.model, (0.3,), (0.35,))
    found = assess(network, wrong, chosen_attacks("all"), EPSILONS, QUICK, seed=0)
    assert all(one.broken.all() and not one.distance.any() for one in found.outcomes)
    assert found.sanity == {"signs": [], "zero_gradients": 0.0, "probed": 0}
