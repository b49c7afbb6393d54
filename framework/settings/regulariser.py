"""The regulariser that the settings name: by its name, or by the number that other programs give it."""

from secateur.framework.plugins.registry import option_names, registry
from secateur.framework.settings.groups.what import REGULARISERS
from secateur.framework.settings.run_config import RunConfig
from secateur.utils.errors import UsageError
from secateur.utils.suggest import unknown

#: names of the regularisers, without the word for none
NAMES = tuple(dict.fromkeys(name for table in REGULARISERS.values() for name in table[1:]))
#: settings that only a regulariser reads
OWN = ("decay", "reg_groups")


def regulariser_name(config: RunConfig) -> str | None:
    """Return the name of the regulariser of `--reg`; None if there is none.

    Raises UsageError for an unknown name, and for a number outside the table of `--reg_table`.
    """
    given = config.reg
    if given is None:
        return None
    table = REGULARISERS[config.reg_table]
    if given.lstrip("+-").isdecimal():
        number = int(given)
        if not 0 <= number < len(table):
            rows = ", ".join(f"{row} {name}" for row, name in enumerate(table))
            raise UsageError(f"--reg {given}: the table {config.reg_table} has {rows}")
        given = table[number]
    if given == table[0]:
        return None
    if given in NAMES:
        return given
    if given not in registry.names("losses"):
        raise UsageError(unknown("--reg", given, (table[0], *NAMES)))
    return given  # of a plug-ins folder, which is checked when it is built


def check_regulariser(config: RunConfig) -> None:
    """Raise UsageError for an unknown regulariser, for two of them, and for settings of one without one."""
    name = regulariser_name(config)
    own = config.loss in NAMES
    if name is not None and own:
        raise UsageError(f"--reg {config.reg} and --loss {config.loss} are two regularisers: give one of the two")
    if name is None and not own and not config.eval:
        for option in OWN:
            if getattr(config, option) is not None:
                raise UsageError(f"--{option} needs --reg, for example --reg HoyerSquare")
    if own and config.reg_groups is not None and "groups" not in option_names(registry.get("losses", config.loss)):
        raise UsageError(
            f"--reg_groups: {config.loss} has no groups, use a structural regulariser such as GroupLasso"
        )
