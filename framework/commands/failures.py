"""The run folder of a command, and conversion of failures of the run to one line in its log."""

import contextlib
from collections.abc import Iterator

from secateur.framework.plugins.faults import contained
from secateur.framework.reporting.console import Console
from secateur.framework.settings.decisions import Decisions
from secateur.framework.settings.run_config import RunConfig, in_flags
from secateur.framework.storage.run_folder import RunFolder
from secateur.utils.errors import RunError, UsageError
from secateur.utils.memory import is_out_of_memory
from secateur.utils.suggest import one_line


@contextlib.contextmanager
def opened(config: RunConfig, decisions: Decisions, command: str, console: Console) -> Iterator[RunFolder]:
    """Create the run folder, with the notes on the settings in its log.

    A failure inside the block is written to the log, with the path of the last good network, and becomes a
    RunError; a UsageError too, since the run has already started.
    """
    folder = RunFolder.create(config, decisions, command)
    try:
        with contained():
            console.log_to(folder.log)
            if config.note:
                console.say(f"note: {' '.join(config.note.split())}")
            for note in decisions.notes:
                console.say(note)
            yield folder
    except (KeyboardInterrupt, BrokenPipeError):
        _note(console, "interrupted")
        raise
    except (RunError, UsageError, OSError) as error:
        last = folder.checkpoint(config.model, "last")
        kept = f"; the last good network is {last}" if last.is_file() else ""
        text = in_flags(error, decisions.written) if isinstance(error, UsageError) else str(error)
        where = f"{folder.path}: " if isinstance(error, OSError) else ""
        _note(console, f"error: {where}{text}{kept}")
        raise RunError(f"{where}{text}{kept}") from error
    except Exception as error:
        if is_out_of_memory(error):
            _note(console, f"error: {one_line(error)}")
            raise RunError(f"out of memory ({one_line(error)}): use a smaller batch_size") from error
        _note(console, f"error: {type(error).__name__}: {error}")
        raise


def _note(console: Console, text: str) -> None:
    with contextlib.suppress(OSError):  # the disk may have failed
        console.note(text)
