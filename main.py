"""The command line of Secateur: `python main.py --flags` runs, `python main.py list` lists the plug-ins.

The installed command is `secateur`, or `python -m secateur`.
"""

import functools
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from secateur import __version__
from secateur.framework.commands.prepare import add_plugins, prepare_run, prepare_study
from secateur.framework.plugins.faults import ends_process, explained, origin, plugin_file
from secateur.framework.plugins.old_imports import old_import
from secateur.framework.plugins.registry import registry
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.dialects.discovery import BARE, OTHER_PROGRAMS
from secateur.framework.settings.field import Flag, is_true
from secateur.framework.settings.oracle_config import STUDY_FLAGS
from secateur.framework.settings.run_config import FLAGS, RunConfig, as_written, in_flags
from secateur.utils.errors import RunError, UsageError
from secateur.utils.memory import is_out_of_memory
from secateur.utils.suggest import nearest, one_line, unknown

ALIASES = {"loss": "losses", "data_set": "datasets", "data_sets": "datasets"}
LONGEST_LINE = 3000
#: dashes in the names of flags are underscores
CONTEXT = {"max_content_width": 120, "token_normalize_func": lambda name: name.replace("-", "_")}
#: options of the command line that are not settings
OWN = ("config_file", "explain")
NEGATIVE = re.compile(r"-\.?\d")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Headed(click.Command):
    """Click command whose help groups the flags under the headings of the config."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group of flags."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                flag = (FLAGS | OTHER_PROGRAMS | STUDY_FLAGS).get(parameter.name or "")
                sections.setdefault(flag.group if flag else "Command", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


class Sections(click.Group, Headed):
    """Click group whose help groups the flags under the headings of the config and lists the subcommands."""


class Switch(click.Option):
    """Option `--name/--no_name` that may be given a truth value: `--name True` or `--name=false`."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser of click read the word after the first spelling, or after "=", as its value."""
        super().add_to_parser(parser, ctx)
        commands = ctx.command.list_commands(ctx) if isinstance(ctx.command, click.Group) else []
        self._flag_needs_value = True
        for spelling in self.opts:
            option = parser._long_opt[spelling]
            option.action = "store"
            option.process = functools.partial(self._read, commands)

    def _read(self, commands: Sequence[str], value: Any, state: Any) -> None:
        """Store the truth value; a command after the switch is not its value."""
        if value in commands:
            state.rargs.insert(0, value)
        given = isinstance(value, str) and value not in commands
        state.opts[self.name] = is_true(value, str(self.name)) if given else True
        state.order.append(self)


class Bare(click.Option):
    """Option that may stand without a value; a negative number after it is its value, not another option."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Let the parser of click read a negative number, which it takes for an option."""
        super().add_to_parser(parser, ctx)
        for spelling in self.opts:
            option = parser._long_opt[spelling]
            option.process = functools.partial(self._read, option.process)

    @staticmethod
    def _read(store: Callable[[Any, Any], None], value: Any, state: Any) -> None:
        """Store the value; the parser has left it among the arguments if it begins with a dash."""
        alone = not isinstance(value, str)
        store(state.rargs.pop(0) if alone and state.rargs and NEGATIVE.match(state.rargs[0]) else value, state)


def option_for(flag: Flag) -> click.Option:
    """Return the click option of a field; values remain text, which the config converts to their type."""
    if flag.type is bool:
        off = f"/--no_{flag.name}" if flag.name in FLAGS else ""
        return Switch(
            [flag.name, f"--{flag.name}{off}"], is_flag=True, default=None, help=_help(flag), hidden=not flag.help
        )
    metavar = flag.metavar or "|".join(flag.choices) or ("NAME" if flag.plugin else flag.type.__name__.upper())
    repeatable = flag.many and flag.type is str or flag.type is dict
    alone = flag.bare or BARE.get(flag.name)
    bare: dict[str, Any] = {"is_flag": False, "flag_value": alone} if alone else {}
    return (Bare if alone else click.Option)(
        [flag.name, f"--{flag.name}"],
        multiple=repeatable,
        metavar=metavar,
        help=_help(flag),
        hidden=not flag.help,
        **bare,
    )


def _help(flag: Flag) -> str:
    if flag.default in (None, (), {}):
        return flag.help
    default = ("on" if flag.default else "off") if flag.type is bool else flag.default
    default = ",".join(default) if isinstance(default, tuple) else default
    return f"{flag.help}  [{default}]"


#: options of commands that run
COMMON = [
    click.Option(
        ["config_file", "--config"], metavar="FILE", help="settings in YAML or JSON; flags win over them"
    ),
    click.Option(["--explain"], is_flag=True, help="print every setting, who chose it and why, and exit"),
]


@click.group(
    cls=Sections, invoke_without_command=True, context_settings=CONTEXT,
    params=[*(option_for(flag) for flag in (FLAGS | OTHER_PROGRAMS).values()), *COMMON],
)  # fmt: skip
@click.version_option(__version__, prog_name="Secateur")
@click.pass_context
def cli(ctx: click.Context, **flags: Any) -> None:
    """Prune a neural network before, during or after training, and measure the result.

    Without flags, LeNet5 is pruned by SNAPit to half of its nodes and trained on FASHION_MINI. All files of a run
    are written to one folder under results/. The command `list` prints the models, criterions, data sets and other
    plug-ins; defaults are in [brackets].
    """
    if ctx.invoked_subcommand is None:
        _run(ctx, prepare_run)


@cli.command("oracle", cls=Headed, context_settings=CONTEXT,
             params=[*(option_for(flag) for flag in STUDY_FLAGS.values()), *COMMON])  # fmt: skip
@click.pass_context
def oracle(ctx: click.Context, **flags: Any) -> None:
    """Measure the importance of each channel of a trained network, and compare the criterions with it.

    Each channel is removed in turn and the change of the loss on training images is computed, which the criterions
    estimate. Prints the correlation of their scores with the measured changes, and writes a run folder with
    oracle.json and scatter plots.
    """
    _run(ctx, prepare_study)


def _run(ctx: click.Context, prepare: Callable[..., tuple[RunConfig, Decisions]]) -> None:
    """Resolve the flags, then run, or explain the settings; exceptions of click that a plug-in raises end the run.

    click would exit with code 0 or abort.
    """
    above = ctx.parent.params if ctx.parent is not None else {}
    file, explain = (ctx.params[name] or above.get(name, ctx.params[name]) for name in OWN)
    try:
        config, decisions = prepare(_given(ctx), Path(file) if file is not None else None)
        with as_written(decisions.written):
            if explain:
                from secateur.framework.commands.listing import explained_run, print_decisions

                print_decisions(*explained_run(config, decisions))
            else:
                from secateur.framework.commands.run import run

                run(config, decisions, ctx.obj)
    except (click.exceptions.Exit, click.Abort, click.ClickException) as error:
        raise RunError(explained(error)) from error


def _given(ctx: click.Context) -> dict[str, Any]:
    """Return the flags on the command line, including those of the parent command."""
    above = _given(ctx.parent) if ctx.parent is not None else {}
    flags = {
        name: value
        for name, value in ctx.params.items()
        if name not in OWN and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    return above | flags


@cli.command("list")
@click.argument("kind", required=False)
@click.option(
    "plugins", "--plugins", multiple=True, metavar="DIR", help="also list the plug-ins of this folder; repeatable"
)
@click.pass_context
def list_plugins(ctx: click.Context, kind: str | None, plugins: tuple[str, ...]) -> None:
    """List the plug-ins by name, of all kinds or of one.

    KIND is one of models, criterions, losses, optimizers, trainers, testers or datasets.
    """
    kinds = registry.kinds if kind is None else (_kind(kind, registry.kinds),)
    assert ctx.parent is not None
    add_plugins((*ctx.parent.params["plugins"], *plugins))
    from secateur.framework.commands.listing import print_tables

    print_tables(kinds)


def _kind(given: str, kinds: Sequence[str]) -> str:
    word = given.lower()
    kind = ALIASES.get(word, word if word in kinds else f"{word}s")
    if kind not in kinds:
        raise UsageError(unknown("kind", given, kinds))
    return kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 success, 1 failed run, 2 usage error, 130 interrupted."""
    command = shlex.join(sys.orig_argv if arguments is None else ["python", "main.py", *arguments])
    try:
        code = cli.main(
            None if arguments is None else list(arguments),
            prog_name=_program(),
            standalone_mode=False,
            obj=command,
        )
    except click.Abort as error:
        if error.__cause__ is not None and ends_process(error.__cause__):
            return _fail(explained(error.__cause__), 1)
        if isinstance(error.__cause__, EOFError):  # click treats it as Ctrl-D; here it is a truncated file
            traceback.print_exception(error.__cause__)
            return 1
        return _fail("interrupted", 130)
    except click.ClickException as error:
        return _fail(_explain(error), 2)
    except UsageError as error:
        return _fail(in_flags(error), 2)
    except (RunError, OSError) as error:  # OSError: such as missing permissions or a full disk
        return _fail(str(error), 1)
    except BaseException as error:
        if isinstance(error.__context__, BrokenPipeError):  # the reader of the output, such as `head`, has exited
            return 1
        if ends_process(error):  # a plug-in called sys.exit: the run has failed, whatever the code
            return _fail(explained(error), 1)
        if not isinstance(error, Exception):
            raise
        message = old_import(error)
        if message is not None:
            return _fail(f"{plugin_file(error) or origin(error)}: {message}", 1)
        if is_out_of_memory(error):
            return _fail(f"out of memory: {one_line(error)}", 1)
        traceback.print_exc()
        return 1
    return code if isinstance(code, int) else 0


def _program() -> str:
    """Return the command that the user ran: the installed command, the package, or main.py of a clone."""
    called = Path(sys.argv[0])
    if called.stem == "secateur":
        return "secateur"
    return "python -m secateur" if called.name == "__main__.py" else "python main.py"


def _explain(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        parameters = error.ctx.command.get_params(error.ctx) if error.ctx else []
        names = [name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)]
        match = nearest(error.option_name, [name for name in names if name.startswith("--")])
        hint = f"did you mean '{match}'?" if match else f"see {_program()} --help"
        return f"unknown flag '{error.option_name}': {hint}"
    return error.format_message()


def _fail(message: str, code: int) -> int:
    line = CONTROL.sub(" ", message).strip()
    click.echo(f"error: {line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + '...'}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
