"""The way from a request, a command line with an optional file, to frozen settings and the decisions on them.

    flags, file -> dialects -> layers, highest precedence first -> settings, decisions

    command line   flags, under the names of Secateur
    preset         plug-ins of a preset on the command line, such as --l0
    config file    settings of --config
    dialect        defaults of another program whose flags were given
    checkpoint     data settings of the run of the checkpoint
    preset         plug-ins of a preset in the file
    implied        settings that follow from given ones: --n_rounds implies --schedule rounds
    rule           autoconfig.json of plug-ins folders
    recommended    settings that the plug-ins recommend
    default

Each layer may depend on the values of those above it. Nothing here writes a file; of files, only the rules of the
plug-ins folders are read.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from secateur.framework.plugins.registry import registry
from secateur.framework.schedules.base import shares
from secateur.framework.settings import decisions as sources
from secateur.framework.settings.decisions import Decisions, Reasoned, because
from secateur.framework.settings.dialects.discovery import DIALECTS, OTHER_PROGRAMS
from secateur.framework.settings.field import Flag, flags_of
from secateur.framework.settings.files import parse_settings
from secateur.framework.settings.implied import implied
from secateur.framework.settings.recommended import load_rules, recommended
from secateur.framework.settings.run_config import FLAGS, KINDS, PRESETS, RunConfig, parse_values
from secateur.utils.errors import UsageError

#: returns the name and the settings of the run of the checkpoint that the settings name; None without one
Inherited = Callable[[RunConfig], tuple[str, RunConfig] | None]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        flags: Values of the command line by flag: text, booleans, and tuples of text.
        file: Settings of the config file, with checked types.
        kind: Class of the settings.
        notes: Remarks on the flags, for the log.
        defaults: Defaults of another program, and the reasons for them.
        written: Flags and keys of other programs by the settings that have their values.
    """

    flags: Mapping[str, Any]
    file: Mapping[str, Any] = field(default_factory=dict)
    kind: type[RunConfig] = RunConfig
    notes: tuple[str, ...] = ()
    defaults: Reasoned = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)


def read_request(
    flags: Mapping[str, Any],
    file: Mapping[str, Any] | None = None,
    where: str = "",
    kind: type[RunConfig] = RunConfig,
) -> Request:
    """Return the request with the names and types of Secateur's settings.

    Flags and keys of other programs are translated by the dialects.

    Args:
        flags: Values of the command line.
        file: Keys and values of the config file; None without a file.
        where: The file, for messages.
        kind: Class of the settings.

    Raises:
        UsageError: For unknown settings, values of a wrong type and contradictions.
    """
    known = flags_of(kind)
    keys = {name: value for name, value in (file or {}).items() if name in OTHER_PROGRAMS and value is not None}
    own = {name: value for name, value in (file or {}).items() if name not in OTHER_PROGRAMS}
    # flags that may stand without a value are words, of which YAML reads some as booleans
    switched = [name for name, value in keys.items() if isinstance(value, bool) and OTHER_PROGRAMS[name].bare]
    keys = parse_values(keys | {name: str(keys[name]).lower() for name in switched}, where, OTHER_PROGRAMS)
    translated, _, _ = _translated(keys, own, known)
    twice = next((name for name in translated if own.get(name, translated[name]) != translated[name]), None)
    if twice is not None:
        raise UsageError(f"{where}: {', '.join(keys)} and {twice} contradict each other")
    ours, defaults, notes = _translated(flags, own, known)
    if keys:  # the defaults depend on all that was given; a flag replaces the keys that are settings of it
        replaced = {key for key in keys if _translated({key: keys[key]}, own, known)[0].keys() & ours}
        below = {key: value for key, value in keys.items() if key not in replaced}
        _, defaults, notes = _translated({**below, **flags}, own, known)
    options = parse_settings(ours.get("set", ()))
    by_flags, by_keys = _written(flags, own, known), _written(keys, own, known)
    given = parse_values({**ours, "set": options}, "", known, by_flags)
    if not options:
        del given["set"]
    read = parse_values({**translated, **own}, where, known, by_keys)
    written = {name: key for name, key in by_keys.items() if name not in given} | by_flags
    return Request(given, read, kind, tuple(notes), defaults, written)


def _written(words: Mapping[str, Any], file: Mapping[str, Any], known: Mapping[str, Flag]) -> dict[str, str]:
    """Return the flags of other programs among the words by the settings that have their values.

    Each is translated alone, since two flags may have equal values.
    """
    found: dict[str, str] = {}
    for name in [name for name in words if name in OTHER_PROGRAMS]:
        alone, _, _ = _translated({name: words[name]}, file, known)
        found |= {setting: name for setting, value in alone.items() if value == words[name]}
    return found


def _translated(
    flags: Mapping[str, Any], file: Mapping[str, Any], known: Mapping[str, Flag]
) -> tuple[Mapping[str, Any], Reasoned, list[str]]:
    """Return the flags under the names of Secateur, the defaults of other programs, and remarks."""
    defaults: Reasoned = {}
    notes: list[str] = []
    for dialect in DIALECTS:
        flags, more, why, lines = dialect.translate(flags, file)
        defaults = because(parse_values(more, flags=known), why) | defaults
        notes += lines
    return flags, defaults, notes


def resolve(request: Request, inherited: Inherited) -> tuple[RunConfig, Decisions]:
    """Return the settings of a request, and the decisions on them; the settings are not checked.

    Args:
        request: What the user asked for.
        inherited: Function that returns the run of the checkpoint.

    Raises:
        UsageError: For unknown plug-ins, and for flags that contradict each other.
    """
    decisions = Decisions(request.kind, request.written)
    decisions.flags = set(request.flags)
    decisions.notes += request.notes
    decisions.add(sources.COMMAND_LINE, because(request.flags))
    file = _below_flags(request)
    evaluates = request.kind(**{**file, **request.flags}).eval
    if not evaluates:
        decisions.add(sources.PRESET, _preset(request.flags, set(request.flags), file))
    decisions.add(sources.FILE, because(file))
    decisions.add(sources.DIALECT, request.defaults)
    saved = inherited(decisions.config)
    if saved is not None:
        name, settings = saved
        decisions.add(sources.CHECKPOINT, because(_saved_values(decisions.config, settings), f"as in {name}"))
    if not evaluates:
        chosen = {name: value for name, value in vars(decisions.config).items() if name not in request.flags}
        decisions.add(sources.PRESET, _preset(chosen, decisions.given, {}))
    decisions.add(sources.IMPLIED, implied(decisions.config, decisions.given))
    if decisions.config.autoconfig:
        for rule in load_rules(registry.folders):
            if rule.holds(decisions.config):
                decisions.add(sources.RULE, because(rule.set, rule.explain(decisions.config)))
        decisions.add(sources.RECOMMENDED, recommended(decisions.config))
    why = "not recommended" if decisions.config.autoconfig else "autoconfig is off"
    decisions.add(sources.DEFAULT, {"outer_layer_pruning": (False, why)})
    decisions.note_all()
    config = decisions.config
    return replace(config, thresholds=shares(config.thresholds)), decisions


def _below_flags(request: Request) -> dict[str, Any]:
    """Return the settings of the file, without those that flags of the command line replace as a whole."""
    file = dict(request.file)
    default = FLAGS["test_scheme"].default
    if "attack" in request.flags and file.get("test_scheme") == default:
        del file["test_scheme"]  # it only repeats the default, which does not contradict the flag
    written = request.kind(**file)
    if request.flags and written.run_name == written.default_run_name():
        del file["run_name"]  # so that it follows --model and --prune_criterion
    if request.flags and written.checkpoint_model == written.default_checkpoint_model():
        del file["checkpoint_model"]
    replaced = PRESETS if any(request.flags.get(preset) for preset in PRESETS) else ()
    return {name: value for name, value in file.items() if name not in replaced}


def _preset(given: Mapping[str, Any], taken: Collection[str], file: Mapping[str, Any]) -> Reasoned:
    """Return the plug-ins of the presets among the given settings, and the reasons.

    A plug-in of the file that is derived from that of the preset is kept.
    """
    found: Reasoned = {}
    for preset, plugins in PRESETS.items():
        for name, plugin in plugins.items() if given.get(preset) else ():
            if name in taken or _is_kind_of(file.get(name), name, plugin):
                continue
            over = f", overriding {file[name]} of the config file" if name in file else ""
            found[name] = plugin, f"--{preset}{over}"
    return found


def _is_kind_of(given: str | None, name: str, wanted: str) -> bool:
    """Whether the given plug-in is derived from the wanted one, and is not the choice of another preset."""
    others = {plugins.get(name) for plugins in PRESETS.values()} - {wanted}
    return given is not None and given not in others and registry.derives(KINDS[name], given, wanted)


def _saved_values(config: RunConfig, saved: RunConfig) -> dict[str, Any]:
    """Return the settings of the run of a checkpoint that determine its accuracy, such as the size of images."""
    kinds = ("data", "test") if config.eval else ("data",)
    values = {name: getattr(saved, name) for name, flag in FLAGS.items() if flag.inherit in kinds}
    if config.eval:
        values["memory_format"] = saved.train_memory_format
        if config.attacks:  # attacks use --attack_samples instead
            del values["limit_test_batches"]
    return values
