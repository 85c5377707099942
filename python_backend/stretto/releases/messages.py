"""Messages of commands that install releases: errors, each with its exit status, and progress on standard error."""

import errno
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from stretto.errors import StrettoError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ReleaseError(StrettoError):
    """An installation or a server failed; the message is one line, without the command's name."""

    status = 1


class BadArgument(ReleaseError):
    """A name is malformed, or an argument fits several releases."""

    status = 2


class Unavailable(ReleaseError):
    """There is no such release, or the hub cannot be reached."""

    status = 5


class NotAllowed(ReleaseError):
    """The licence is not accepted, or the hub refuses access."""

    status = 6


class DoesNotFit(ReleaseError):
    """The memory or the disk is too small."""

    status = 7


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Replace errors of the file system by a ReleaseError that names the file, or the folder if there is no file."""
    try:
        yield
    except BrokenPipeError:  # an error of a standard stream
        raise
    except OSError as error:
        raise disk_error(error, folder) from error


def disk_error(error: OSError, folder: Path) -> ReleaseError:
    """Return the ReleaseError for an error of the file system; see `disk_errors`."""
    error_type = DoesNotFit if error.errno in FULL else ReleaseError
    return error_type(f"{error.filename or folder}: {error.strerror or error}")


BAR_S = 0.25  # time between two updates of a progress line
PROGRESS_S = 5.0
LABEL = 12  # width of the first column


def failed(command: str, error: ReleaseError) -> int:
    """Print the error of a command, and return its exit status."""
    print(f"stretto {command}: {plain(str(error))}", file=sys.stderr)
    return error.status


def plain(text: str) -> str:
    """Replace characters of a text, such as a file name, that control a terminal or its writing direction."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def line(label: str, text: str) -> None:
    """Print a line with a label in its first column."""
    print(f"{label:{LABEL}} {plain(text)}", file=sys.stderr, flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of a table as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def gigabytes(num_bytes: float) -> str:
    """Return a number of bytes as text, in GB or in MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


class InstallationStage:
    """Stage of an installation: one line that is updated on a terminal, two lines elsewhere.

    Args:
        total: Number of bytes to process; 0 if it is unknown.
        progress: Called at the start, at the end, and at most every PROGRESS_S in between.
    """

    def __init__(self, label: str, text: str, total: int = 0, progress: Callable[[], None] = lambda: None) -> None:
        self._label = label
        self._text = text
        self._total = total
        self._progress = progress
        self._done = 0
        self._shown = 0.0
        self._reported = 0.0
        progress()
        self._begun = self._first = time.monotonic()
        self._lock = threading.Lock()
        if sys.stderr.isatty():
            self._rewrite(text)
        else:
            line(label, text)

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            now = time.monotonic()
            if not self._done:
                self._first = now  # the imports of a child process do not count
            self._done += num_bytes
            if now - self._reported >= PROGRESS_S:
                self._reported = now
                self._progress()
            if not sys.stderr.isatty() or now - self._shown < BAR_S:
                return
            self._shown = now
            rate = self._done / max(now - self._first, 1e-3)
            left = f", {(self._total - self._done) / rate:.0f} s left" if self._total and rate else ""
            share = f"{gigabytes(self._done)} of {gigabytes(self._total)}, " if self._total else ""
            self._rewrite(f"{self._text}: {share}{rate / 1e6:.0f} MB/s{left}")

    def end(self, text: str = "") -> None:
        """Print the last line of the stage: its result or, by default, its text."""
        self._progress()
        seconds = f"{text or self._text} ({time.monotonic() - self._begun:.0f} s)"
        if sys.stderr.isatty():
            self._rewrite(seconds)
            print(file=sys.stderr)
        else:
            line(self._label, seconds)

    def _rewrite(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be replaced
        print(f"\r\033[K{f'{self._label:{LABEL}} {plain(text)}':.{width}}", end="", file=sys.stderr, flush=True)
