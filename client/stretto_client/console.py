"""Standard streams of the command line, and decoding of text in them and in arguments."""

import argparse
import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

BROKEN_PIPE = 141  # exit status that shells report for a program that SIGPIPE has ended
INTERRUPTED = 130
PRINTING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}  # errors of a write to a standard stream
MAX_SHOWN = 300  # maximum number of characters of a file name in messages


def run(command: Callable[[], int]) -> int:
    """Run a command with three open standard streams, and return its exit status.

    Characters that standard output cannot encode are escaped. If the reader of an output has left, as in `| head -1`,
    the command ends without a message.

    Args:
        command: Function that returns an exit status. It must raise errors of standard streams (`is_of_stream`).
    """
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            status = command()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if not is_of_stream(error):
            raise
        status = BROKEN_PIPE if isinstance(error, BrokenPipeError) else 1
        with suppress(OSError):
            if status != BROKEN_PIPE:
                print(f"error: standard output: {error.strerror}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):  # otherwise the interpreter repeats the error
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def open_closed_streams() -> None:
    """Connect closed standard streams to the null device.

    Otherwise a file opened later gets the descriptor of a standard stream, and messages are written into it.
    """
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - gets the lowest free descriptor, and keeps it


def is_of_stream(error: Exception) -> bool:
    """Return True if an error comes from a standard stream: its reader has left, or for example the disk is full."""
    is_printing = isinstance(error, OSError) and error.filename is None and error.errno in PRINTING
    return is_printing or isinstance(error, BrokenPipeError)


def described(error: Exception) -> str:
    """Return the message of an error; for an operating system error, its file and the reason."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{str(error.filename)[:MAX_SHOWN]}: {error.strerror}"


class TextDecoder:
    """Incremental decoder of UTF-8, or of UTF-16 with a byte order mark; errors name the text's `source`."""

    def __init__(self, source: str):
        self._source = source
        self._decoder: codecs.IncrementalDecoder | None = None
        self._encoding = ""
        self._head = b""
        self._num_bytes = 0
        self._line = 1

    def decode(self, data: bytes, is_last: bool = False) -> str:
        """Return the complete characters; raise ValueError with the position if the bytes are not text."""
        if self._decoder is None:
            data = self._head + data
            self._head = b""
            if data in (b"", b"\xff", b"\xfe") and not is_last:  # may be the first half of UTF-16's byte order mark
                self._head = data
                return ""
            is_utf_16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            self._encoding = "UTF-16" if is_utf_16 else "UTF-8"
            self._decoder = codecs.getincrementaldecoder("utf-16" if is_utf_16 else "utf-8-sig")()
        try:
            text = self._decoder.decode(data, is_last)
        except UnicodeDecodeError as error:
            raise ValueError(self._message(error, self._num_bytes + len(data))) from None
        self._num_bytes += len(data)
        self._line += text.count("\n")
        return text

    def _message(self, error: UnicodeDecodeError, num_bytes: int) -> str:
        position = num_bytes - len(error.object) + error.start
        line = self._line + error.object[: error.start].count(b"\n")
        byte = error.object[error.start]
        source = f"{self._source}: " if self._source else ""
        return f"{source}can't decode byte 0x{byte:02x} at position {position} (line {line}) as {self._encoding}"


def argument_path(word: str) -> Path:
    """Return the path in a command-line argument or its default, for argparse; `~` is a home folder."""
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{word}: {error}") from None


def argument_text(word: str) -> str:
    """Return the text of a command-line argument, for argparse.

    The text is decoded as UTF-8 in every locale or, if it is not valid UTF-8, in the encoding of the locale.
    """
    try:
        return TextDecoder("").decode(os.fsencode(word), is_last=True)
    except ValueError as error:
        if not any("\ud800" <= letter <= "\udfff" for letter in word):  # Python's surrogates for undecodable bytes
            return word
        raise argparse.ArgumentTypeError(str(error)) from None
