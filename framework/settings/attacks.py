"""Attacks by name, with their norms and default strengths; imports no torch, so that names are checked first."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from secateur.utils.errors import UsageError
from secateur.utils.limits import Limit, check_all, check_switch, number, optional, whole
from secateur.utils.suggest import unknown

ALL_ATTACKS = "all"
#: default attack of the tester, as in SNIP-it
DEFAULT = "CarliniWagner"
NEEDS_FOOLBOX = "attacks need foolbox: pip install 'secateur[attacks]', in a clone pip install foolbox"

#: default largest perturbations of pixels in [0, 1]
EPSILONS: dict[str, tuple[float, ...]] = {
    "Linf": (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
    "L2": (0.1, 0.25, 0.5, 1.0, 2.0, 3.0),
    "L1": (1.0, 2.0, 5.0, 10.0, 20.0, 40.0),
}
NORMS = tuple(EPSILONS)


@dataclass(frozen=True)
class Attack:
    """One attack of foolbox.

    minimal: searches the smallest perturbation, instead of any within a given epsilon.
    gradient: uses the gradient of the network. random: restarts give different results.
    options: arguments of its class that differ from the defaults of foolbox.
    steps, rounds: names of the options that `--attack_steps` and `--attack_binary_steps` set; "" if it has none.
    """

    name: str
    cls: str
    norm: str
    paper: str
    minimal: bool = False
    gradient: bool = True
    random: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: str = "steps"
    rounds: str = ""

    def passes(self, options: Mapping[str, Any]) -> int:
        """Estimate the number of forward passes per batch and epsilon, for the progress bar."""
        steps = int(options.get(self.steps, 1)) * int(options.get(self.rounds, 1))
        return 3 + steps * (9 if "DeepFool" in self.name else 1)


#: The search of Carlini and Wagner takes 9 times 10,000 steps from a constant of 0.001, which is hours on a CPU.
#: From a constant of 1 fewer rounds suffice, and larger steps allow fewer of them. The steps of PGD sum up to 2.5
#: epsilon, as in its paper, to reach any corner from any start (the 40 steps of 1/30 of foolbox do not).
ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack(
            "CarliniWagner", "L2CarliniWagnerAttack", "L2", "arXiv:1608.04644", minimal=True,
            options={"binary_search_steps": 5, "steps": 150, "stepsize": 0.03, "initial_const": 1.0},
            rounds="binary_search_steps",
        ),
        Attack(
            "LinfPGD", "LinfProjectedGradientDescentAttack", "Linf", "arXiv:1706.06083", random=True,
            options={"steps": 40, "rel_stepsize": 2.5 / 40},
        ),
        Attack("L1FastGradientAttack", "L1FastGradientAttack", "L1", "arXiv:1412.6572", steps=""),
        Attack(
            "L2DeepFoolAttack", "L2DeepFoolAttack", "L2", "arXiv:1511.04599", minimal=True, options={"steps": 50}
        ),
        Attack("FGSM", "LinfFastGradientAttack", "Linf", "arXiv:1412.6572", steps=""),
        Attack("DDNAttack", "DDNAttack", "L2", "arXiv:1811.09600", minimal=True, options={"steps": 100}),
        Attack(
            "SaltAndPepperNoiseAttack", "SaltAndPepperNoiseAttack", "L2", "foolbox", minimal=True,
            gradient=False, random=True, options={"steps": 1000},
        ),
        Attack(
            "L2RepeatedAdditiveGaussianNoiseAttack", "L2RepeatedAdditiveGaussianNoiseAttack", "L2", "foolbox",
            gradient=False, random=True, options={"repeats": 100}, steps="repeats",
        ),
    )
}  # fmt: skip


#: property of an attack -> what is said of one without it
LACKING = {
    "steps": "takes a single step",
    "rounds": "has no binary search",
    "random": "is deterministic: restarts give the same result",
}
_POSITIVE = number(above=0)
#: option of a class of foolbox -> its allowed values
OPTION_LIMITS: dict[str, Limit] = {
    **dict.fromkeys(("steps", "binary_search_steps", "repeats"), whole(1)),
    "candidates": optional(whole(2)),  # None: all candidates
    **dict.fromkeys(("stepsize", "rel_stepsize", "initial_const", "init_epsilon"), _POSITIVE),
    "abs_stepsize": optional(_POSITIVE),  # None: no fixed step size
    **dict.fromkeys(("confidence", "overshoot"), number(least=0)),
    "gamma": number(above=0, below=1),
    **dict.fromkeys(("abort_early", "random_start", "across_channels", "check_trivial"), check_switch),
}


def chosen_attacks(text: str) -> list[Attack]:
    """Return the attacks of a text such as "FGSM", "FGSM,LinfPGD" or "all".

    Raises UsageError with the nearest match for an unknown name.
    """
    words = [word.strip() for word in str(text).split(",") if word.strip()]
    if not words:
        raise UsageError(f"--attack {text!r} has no name (one of {', '.join((*ATTACKS, ALL_ATTACKS))})")
    for word in words:
        if word not in ATTACKS and word != ALL_ATTACKS:
            raise UsageError(unknown("attack", word, (*ATTACKS, ALL_ATTACKS)))
    return list(ATTACKS.values()) if ALL_ATTACKS in words else [ATTACKS[word] for word in dict.fromkeys(words)]


def check_attack_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an invalid value, such as zero steps; `make_attack` checks the names."""
    check_all(options, OPTION_LIMITS, "attack_options: ")


def chosen_epsilons(given: Any, attacks: Sequence[Attack]) -> dict[str, tuple[float, ...]]:
    """Return the ascending epsilons of each norm of the attacks: the given ones, or the defaults.

    `given` is a number, a text such as "8/255,16/255", a list of these, or a mapping from norm to these. In a
    text, a norm and a colon apply to the numbers after them: "Linf:2/255,8/255,L2:0.5". Numbers without a norm
    apply to every norm.
    """
    norms = [norm for norm in NORMS if any(attack.norm == norm for attack in attacks)]
    by_norm = _by_norm(given)
    for norm in by_norm:
        if norm and norm not in norms:
            raise UsageError(f"--epsilons for {norm}: the attacks here are bounded in {', '.join(norms)}")
    epsilons = {norm: by_norm.get(norm) or by_norm.get("") or EPSILONS[norm] for norm in norms}
    for norm, values in epsilons.items():
        if norm == "Linf" and max(values) > 1:
            raise UsageError(
                f"--epsilons {max(values):g}: Linf is in pixels of [0, 1], for example 8/255"
                + ("" if len(norms) == 1 else "; for single norms: Linf:8/255,L2:0.5,L1:10")
            )
    return {norm: tuple(sorted(set(values))) for norm, values in epsilons.items()}


def _by_norm(given: Any) -> dict[str, list[float]]:
    """Return the numbers by norm; "" for numbers without a norm."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {_norm(str(norm)): [x for part in _by_norm(v).values() for x in part] for norm, v in given.items()}
    found: dict[str, list[float]] = {}
    norm = ""
    for word in _words(given):
        head, colon, number = word.rpartition(":")
        if colon:
            norm = _norm(head)
        found.setdefault(norm, []).append(_number(number))
    return found


def _words(given: Any) -> Iterable[str]:
    parts = given if isinstance(given, list | tuple) else [given]
    return [word for part in parts for word in str(part).replace(",", " ").split()]


def _norm(text: str) -> str:
    match = {norm.casefold(): norm for norm in NORMS}.get(text.strip().casefold())
    if match is None:
        raise UsageError(unknown("norm in --epsilons", text, NORMS))
    return match


def _number(text: str) -> float:
    over, slash, under = text.partition("/")
    try:
        value = float(over) / float(under) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"--epsilons must be numbers above 0, such as 0.5 or 8/255, got {text!r}")
    return value
