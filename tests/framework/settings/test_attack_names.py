"""Names and epsilons are understood, and refused, without torch."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from secateur.framework.settings.attacks import ATTACKS, EPSILONS, chosen_attacks, chosen_epsilons
from secateur.utils.errors import UsageError
from tests.command_line import Result

EIGHT = [
    "CarliniWagner", "LinfPGD", "L1FastGradientAttack", "L2DeepFoolAttack", "FGSM", "DDNAttack",
    "SaltAndPepperNoiseAttack", "L2RepeatedAdditiveGaussianNoiseAttack",
]  # fmt: skip


def test_the_eight_attacks_have_their_known_names_and_all_means_all() -> None:
    assert list(ATTACKS) == EIGHT
    assert [attack.name for attack in chosen_attacks("all")] == EIGHT
    assert [attack.name for attack in chosen_attacks("FGSM, LinfPGD,FGSM")] == ["FGSM", "LinfPGD"]


@pytest.mark.parametrize("name", EIGHT)
def test_an_attack_is_of_the_class_and_norm_it_says(name: str) -> None:
    import foolbox

    attack = ATTACKS[name]
    cls = getattr(foolbox.attacks, attack.cls)
    made = cls(**attack.options)
    order = {"Linf": float("inf"), "L2": 2, "L1": 1}[attack.norm]
    assert made.distance.p == order
    assert attack.minimal == isinstance(made, foolbox.attacks.base.MinimizationAttack)
    assert not attack.steps or attack.steps in attack.options


def test_default_epsilons_are_those_of_the_norms() -> None:
    assert EPSILONS["Linf"] == tuple(n / 255 for n in (1, 2, 4, 8, 16))
    assert (EPSILONS["L2"][0], EPSILONS["L2"][-1]) == (0.1, 3.0)
    assert (EPSILONS["L1"][0], EPSILONS["L1"][-1]) == (1.0, 40.0)
    assert chosen_epsilons(None, chosen_attacks("FGSM")) == {"Linf": EPSILONS["Linf"]}
    assert chosen_epsilons(None, chosen_attacks("all")) == EPSILONS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("8/255", {"Linf": (8 / 255,)}),
        (("0.1,2/255", "0.3"), {"Linf": (2 / 255, 0.1, 0.3)}),
        ([0.2, 0.1, 0.2], {"Linf": (0.1, 0.2)}),
        (0.5, {"Linf": (0.5,)}),
        ("linf:0.1", {"Linf": (0.1,)}),
        ({"Linf": [0.25]}, {"Linf": (0.25,)}),
    ],
)
def test_epsilons_of_one_norm(given: object, expected: dict[str, tuple[float, ...]]) -> None:
    assert chosen_epsilons(given, chosen_attacks("FGSM")) == expected


def test_epsilons_may_be_given_by_norm_and_the_rest_keeps_its_own() -> None:
    attacks = chosen_attacks("FGSM,DDNAttack,L1FastGradientAttack")
    found = chosen_epsilons("Linf:1/255,2/255,L2:0.5", attacks)
    assert found == {"Linf": (1 / 255, 2 / 255), "L2": (0.5,), "L1": EPSILONS["L1"]}
    assert chosen_epsilons("0.5", attacks) == dict.fromkeys(("Linf", "L2", "L1"), (0.5,))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0", "above 0"),
        ("-1", "above 0"),
        ("inf", "above 0"),
        ("nan", "above 0"),
        ("1/0", "above 0"),
        ("small", "'small'"),
        ("8", "8/255"),
        ("L3:0.1", "norm in --epsilons 'L3'"),
        ("L2:0.1", "bounded in Linf"),
    ],
)
def test_epsilons_that_make_no_sense_are_refused(given: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected) as caught:
        chosen_epsilons(given, chosen_attacks("FGSM"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("given", "expected"), [("FSGM", "did you mean 'FGSM'"), ("PGD", "all"), ("", "no name")])
def test_a_name_that_does_not_exist_is_refused(given: str, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        chosen_attacks(given)


def test_names_are_checked_without_torch_and_without_foolbox() -> None:
    code = (
        "import sys; import secateur.framework.commands.prepare\n"
        "assert not {'torch', 'foolbox', 'matplotlib'} & sys.modules.keys(), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", ["--attack FGSM", "--test_scheme AdversarialEvaluation"])
def test_without_foolbox_the_error_names_the_extra(
    flags: str, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    result = command("--eval", *flags.split())
    assert result.code == 2 and result.config is None
    assert "secateur[attacks]" in result.err and result.err.count("\n") == 1
    assert command("--model", "LeNet5").code == 0  # everything else works
