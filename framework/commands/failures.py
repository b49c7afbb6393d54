"""Turn failures of a run into one line, and leave what was reached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from secateur.framework.plugins.faults import contained
from secateur.framework.reporting.console import Console
from secateur.framework.storage.run_folder import RunFolder
from secateur.utils.errors import RunError, UsageError
from secateur.utils.memory import is_out_of_memory
from secateur.utils.suggest import one_line


@contextlib.contextmanager
def explaining(folder: RunFolder, model: str, console: Console) -> Iterator[None]:
    """A run that fails says why in its log too, and where the last good network is.

    Whatever was wrong could not be known before the run began: it has failed, it was not called wrongly.
    """
    try:
        with contained():
            yield
    except (KeyboardInterrupt, BrokenPipeError):
        _note(console, "interrupted")
        raise
    except (RunError, UsageError, OSError) as error:
        last = folder.checkpoint(model, "last")
        kept = f"; the last good network is {last}" if last.is_file() else ""
        where = f"{folder.path}: " if isinstance(error, OSError) else ""
        _note(console, f"error: {where}{error}{kept}")
        raise RunError(f"{where}{error}{kept}") from error
    except Exception as error:
        if is_out_of_memory(error):
            _note(console, f"error: {one_line(error)}")
            raise RunError(f"out of memory ({one_line(error)}): a smaller batch_size needs less") from error
        _note(console, f"error: {type(error).__name__}: {error}")
        raise


def _note(console: Console, text: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be what has failed
        console.note(text)
