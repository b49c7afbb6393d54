"""Signs of masked gradients are seen where there are some, and not where there are none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.framework.settings.attacks import chosen_attacks, chosen_epsilons
from secateur.framework.studies.robustness.assess import assess
from secateur.framework.studies.robustness.attacking import Effort
from secateur.framework.studies.robustness.points import PixelModel
from secateur.framework.training.tester import Network
from secateur.utils.errors import RunError
from tests.framework.studies.robustness.linear import grey_points, linear


class Constant(nn.Module):
    """Always class 0, with or without a path to the image."""

    def __init__(self, connected: bool) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
        self.connected = connected

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.logits.expand(len(images), 2)
        return outputs + 0 * images.flatten(1)[:, :2] if self.connected else outputs.clone()


class Stairs(nn.Module):
    """A classifier behind a quantisation: its gradient is zero everywhere, and it is no more robust for that."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner((images * 50).round() / 50)


class Misled(nn.Module):
    """A classifier with gradients that point the wrong way."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.inner(images)
        reversed_gradient: Tensor = (2 * outputs).detach() - outputs
        return reversed_gradient


class OnlyNear(nn.Module):
    """Linear near mid-grey; images whose pixels lie more than 0.1 from it are class 0 whatever they show."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        far = ((images - 0.5).abs().mean(dim=(1, 2, 3)) > 0.1).double()
        bonus = torch.stack([1e6 * far, 0 * far], dim=1)
        return self.inner(images) + bonus.detach()


def signs(model: nn.Module, names: str, epsilons: Any = None, keep: int | None = None) -> dict[str, Any]:
    model = model.eval()
    points = grey_points(PixelModel(model, (0.0,), (1.0,)), 60)
    if keep is not None:
        points = points.at(points.targets == keep)
    attacks = chosen_attacks(names)
    found = assess(
        Network("net", model), points, attacks, chosen_epsilons(epsilons, attacks), Effort(20, 3), seed=0
    )
    return found.sanity


def test_an_honest_classifier_shows_no_sign() -> None:
    found = signs(linear(), "all")
    assert found["signs"] == [] and found["zero_gradients"] == 0 and found["probed"] == 60


@pytest.mark.parametrize("connected", [True, False])
def test_a_constant_network_is_flagged(connected: bool) -> None:
    found = signs(Constant(connected), "all")
    assert found["zero_gradients"] == 1
    assert "gradient is zero on 100 %" in found["signs"][0]


def test_noise_that_beats_the_gradient_is_flagged() -> None:
    found = signs(Stairs(linear()), "FGSM,DDNAttack,SaltAndPepperNoiseAttack", "Linf:0.05,0.1,L2:0.3,0.6,3")
    text = "\n".join(found["signs"])
    assert found["zero_gradients"] == 1
    assert "FGSM, epsilon" in text and "random perturbations break" in text
    wrong_way = signs(Misled(linear()), "FGSM", "0.02,0.05,0.1")
    assert wrong_way["zero_gradients"] == 0 and "random perturbations break" in wrong_way["signs"][0]


def test_an_attack_by_noise_that_beats_those_by_gradient_is_flagged() -> None:
    found = signs(Misled(linear()), "L2DeepFoolAttack,L2RepeatedAdditiveGaussianNoiseAttack", "0.5,1,2")
    assert any(sign.startswith("L2RepeatedAdditiveGaussianNoiseAttack breaks") for sign in found["signs"])


def test_a_larger_epsilon_that_breaks_less_is_flagged() -> None:
    # class 0 is what images far away are taken for: those of class 0 are broken nearby and safe far away
    found = signs(OnlyNear(linear()), "FGSM", "0.05,0.3", keep=0)
    assert any("epsilon 0.3 breaks" in sign and "at a smaller one" in sign for sign in found["signs"])


def test_one_step_that_beats_many_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.framework.studies.robustness import assess as module
    from secateur.framework.studies.robustness.attacking import run_attack

    def weak(attack: Any, *arguments: Any, **options: Any) -> Any:
        outcome = run_attack(attack, *arguments, **options)
        if attack.name == "LinfPGD":
            outcome.broken &= False
        return outcome

    monkeypatch.setattr(module, "run_attack", weak)
    found = signs(linear(), "LinfPGD,FGSM", "0.05")
    assert any(sign.startswith("FGSM breaks") and "more than LinfPGD" in sign for sign in found["signs"])


def test_a_network_of_a_single_class_is_refused_before_any_attack() -> None:
    points = grey_points(PixelModel(linear(2), (0.0,), (1.0,)))
    attacks = chosen_attacks("L2DeepFoolAttack")
    network = Network("lonely", linear(1))
    with pytest.raises(RunError, match="lonely has a single class"):
        assess(network, points, attacks, chosen_epsilons(None, attacks), Effort(), seed=0)
