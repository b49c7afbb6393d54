"""Checks of the flags of attacks before anything is loaded, without importing torch."""

from importlib.util import find_spec
from pathlib import Path

from secateur.framework.settings.attacks import (
    DEFAULT,
    NEEDS_FOOLBOX,
    check_attack_options,
    chosen_attacks,
    chosen_epsilons,
)
from secateur.framework.settings.run_config import FLAGS, RunConfig
from secateur.framework.storage.locate import (
    _config_beside,
    checkpoint_in,
    find_checkpoint,
    find_folder,
    run_of,
)
from secateur.framework.storage.run_folder import FINISHED
from secateur.utils.errors import UsageError

TESTER_FLAGS = [name for name, flag in FLAGS.items() if "tester" in flag.readers]
#: flags -> the property of an attack that they need
COUNT_FLAGS = {"attack_steps": "steps", "attack_binary_steps": "rounds", "attack_restarts": "random"}


def check_attack_flags(config: RunConfig) -> None:
    """Raise UsageError for invalid names and numbers, which need no checkpoint to check."""
    if not config.eval:
        return
    for name in TESTER_FLAGS:
        FLAGS[name].check(getattr(config, name))
    if config.attack is not None:
        chosen_attacks(config.attack)
    given = config.asked_options("tester")
    if not (config.attacks or given.keys() & set(TESTER_FLAGS)):
        return
    if config.attacks and find_spec("foolbox") is None:
        raise UsageError(NEEDS_FOOLBOX)
    if isinstance(given.get("attack_options"), dict):
        check_attack_options(given["attack_options"])
    attacks = chosen_attacks(given.get("attack", DEFAULT))
    chosen_epsilons(given.get("epsilons"), attacks)
    for flag, kind in COUNT_FLAGS.items():
        value = given.get(flag)
        if value is not None and value != 1 and not any(getattr(attack, kind) for attack in attacks):
            names = ", ".join(attack.name for attack in attacks)
            reason = {"steps": "takes a single step", "rounds": "has no binary search",
                      "random": "is deterministic: restarts give the same result"}[kind]  # fmt: skip
            raise UsageError(f"--{flag} {value}: {names} {reason}")


def check_attacked_data(config: RunConfig) -> None:
    """Raise UsageError unless the checkpoints were trained on the data they are attacked on."""
    if not config.eval:
        return
    if config.attacks:
        run = run_of(find_checkpoint(config))
        saved = run.read_config()
        if saved is None:
            raise UsageError(f"{run.path} has no readable config.yaml with its data set")
        if saved.data_set != config.data_set:
            raise UsageError(f"{run.path} was trained on {saved.data_set}: it cannot be attacked on "
                             f"--data_set {config.data_set}")  # fmt: skip
    if config.compare_with is not None:
        _check_compared(config)


def _check_compared(config: RunConfig) -> None:
    file = compared_checkpoint(config)
    saved = run_of(file).read_config()
    if saved is None:
        raise UsageError(f"--compare_with {config.compare_with}: it has no readable config.yaml with its data set")
    names = ["data_set", "image_size", "tuning", *(["seed"] if config.tuning else [])]
    for name in names:
        mine, other = getattr(config, name), getattr(saved, name)
        if mine != other:
            raise UsageError(f"--compare_with {config.compare_with}: it has {name} {other}, this run {mine}: "
                             "both need the same images")  # fmt: skip


def compared_checkpoint(config: RunConfig) -> Path:
    """Return the finished checkpoint of the run folder of `--compare_with`; raise UsageError without one."""
    assert config.compare_with is not None
    folder = find_folder(config.compare_with, config.results_dir, "--compare_with")
    saved = _config_beside(folder).read_config()
    return checkpoint_in(folder, f"{saved.model if saved is not None else config.model}_{FINISHED}")
