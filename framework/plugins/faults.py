"""Handling of plug-in exceptions that would end the process or be mistaken for Ctrl-C."""

import dis
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from secateur.framework.plugins.source import ROOT
from secateur.utils.errors import RunError
from secateur.utils.suggest import one_line

#: file -> name of every registered plug-in, for error messages
PLUGIN_FILES: dict[Path, str] = {}


def ends_process(error: BaseException) -> bool:
    """Whether an exception is not caught by `except Exception` or exhausted the stack, and is not Ctrl-C.

    A KeyboardInterrupt from a `raise` statement in a plug-in is not Ctrl-C, since Python handles the signal
    between two other instructions.
    """
    if isinstance(error, KeyboardInterrupt):
        frames = _frames(error.__traceback__)
        return bool(frames) and _raises(frames[-1]) and _file(frames[-1]) in PLUGIN_FILES
    return not isinstance(error, Exception) or isinstance(error, RecursionError)


def explained(error: BaseException, where: str = "") -> str:
    """Return one line with the origin, type and text of an exception; a plug-in is named with its file."""
    text = one_line(error)
    raised = f"raised {type(error).__name__}" + (f": {text}" if text else "")
    file = plugin_file(error)
    if where and (file is None or file.stem == where.partition(".")[0]):
        return f"{where} {raised}"
    return f"{origin(error)} {raised}" + (f" in {where}" if where else "")


def plugin_file(error: BaseException) -> Path | None:
    """Return the file of the innermost plug-in in the traceback of the error or of its cause."""
    frames = _frames((error.__cause__ or error).__traceback__)
    return next((file for file in map(_file, reversed(frames)) if file in PLUGIN_FILES), None)


def origin(error: BaseException) -> str:
    """Return the innermost plug-in in the traceback, or else the innermost file outside Secateur."""
    plugin = plugin_file(error)
    if plugin is not None:
        return f"{plugin.stem} ({plugin})"
    files = [_file(frame) for frame in reversed(_frames(error.__traceback__))]
    foreign = [file for file in files if not file.is_relative_to(ROOT)]
    return str((foreign or files or [Path(sys.argv[0])])[0])


@contextmanager
def contained(where: str = "") -> Iterator[None]:
    """Convert SystemExit and similar exceptions raised inside the block to a RunError of one line.

    Ctrl-C and exceptions that `except Exception` catches are not converted, except for RecursionError.
    """
    try:
        yield
    except BaseException as error:
        if not ends_process(error):
            raise
        raise RunError(explained(error, where)) from error


def _frames(traceback: TracebackType | None) -> list[TracebackType]:
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return frames


def _raises(frame: TracebackType) -> bool:
    instruction = frame.tb_frame.f_code.co_code[frame.tb_lasti]
    return dis.opname[instruction] in ("RAISE_VARARGS", "RERAISE")


def _file(frame: TracebackType) -> Path:
    return Path(frame.tb_frame.f_code.co_filename)
