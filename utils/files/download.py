"""Download data sets with a timeout; a failed download returns the reason and leaves no files."""

import contextlib
import http.client
import io
import os
import socket
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from secateur.utils.suggest import one_line

#: seconds without an answer after which a download has failed
DOWNLOAD_TIMEOUT = 15.0
_DOWNLOAD_ERRORS = (
    OSError, EOFError, ValueError, RuntimeError, http.client.HTTPException, tarfile.TarError, zlib.error,
)  # fmt: skip


def answering(urls: Sequence[str], seconds: float) -> tuple[list[str], str]:
    """Request all `urls` in parallel; return those that answer within `seconds`, and the errors of the others.

    A socket timeout limits neither the name resolution nor the number of addresses that are tried in turn, so the
    requests run in daemon threads that are abandoned after `seconds`.
    """
    answers: dict[str, str] = {}

    def ask(url: str) -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
                answers[url] = ""
        except urllib.error.HTTPError as error:
            error.close()
            answers[url] = ""  # the server answers; a missing file is reported by the download
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers[url] = one_line(error) or type(error).__name__

    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    silent = f"no answer within {seconds:g} s"
    reasons = {url: answers.get(url, silent) for url in urls}
    live = [url for url, reason in reasons.items() if not reason]
    return live, "; ".join(f"{url}: {reason}" for url, reason in reasons.items() if reason)


@contextlib.contextmanager
def _quiet_and_impatient() -> Iterator[None]:
    """Suppress torchvision's progress bar, and set a timeout for its sockets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def download(
    fetch: Callable[[Path, Sequence[str]], None], sources: Sequence[str], root: Path, layout: str
) -> str | None:
    """Download a data set to `root / layout`; return None, or the reason of a failure.

    The files are downloaded to a temporary folder inside `root` and moved when they are complete, so that neither
    a failure nor a killed process leaves an incomplete data set.

    Args:
        fetch: `fetch(folder, live)` downloads from the addresses `live` to `folder / layout`.
        sources: Addresses; those that answer are passed to `fetch`.
        root: Folder of the downloads.
        layout: Folder of the data set, relative to `root`.
    """
    live, silence = answering(sources, DOWNLOAD_TIMEOUT)
    if not live:
        return f"download failed ({silence})"
    goal = root / layout
    created = [folder for folder in (goal, *goal.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as arriving, _quiet_and_impatient():
            fetch(Path(arriving), live)
            goal.mkdir(parents=True, exist_ok=True)
            for file in sorted((Path(arriving) / layout).iterdir()):
                os.replace(file, goal / file.name)
        return None
    except _DOWNLOAD_ERRORS as error:
        return f"download failed ({one_line(error) or type(error).__name__})"
    finally:
        for folder in created:  # innermost first; folders with files of the data set are not empty and are kept
            with contextlib.suppress(OSError):
                folder.rmdir()
