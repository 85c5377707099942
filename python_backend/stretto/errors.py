"""Exception hierarchy, independent of the transport; `triton_io` maps these exceptions to Triton errors.

StrettoError
├── InvalidRequest      the client's mistake; reported for that request only
├── Overloaded          a server limit is reached; the request can be retried later
│   └── NoCapacity         the queue is full; rejected before any work
├── Closing             the server, or a part of it, is shutting down; the request can be retried later
├── Cancelled           the client disconnected or cancelled
└── CheckpointError     a checkpoint file is missing or invalid; the model is not loaded

The module also defines the argument parser that all commands share.
"""

import argparse
import secrets
from pathlib import Path
from typing import NoReturn

INCIDENT = "internal error "
# Kinds of errors, which begin the messages of models and proxy, followed by ": ".
INVALID = "invalid request"
FULL = "full"
UNAVAILABLE = "unavailable"


class StrettoError(Exception):
    """Base of all exceptions that this package defines."""


class InvalidRequest(StrettoError, ValueError):
    """Invalid request.

    Attributes:
        field: Path of the invalid field, for example `options.audio.top_k`.
        got: Value in the request, or a description of it.
    """

    def __init__(self, field: str, expected: str, got: object):
        super().__init__(f"{field}: expected {expected}, got {got}")
        self.field = field
        self.expected = expected
        self.got = got


class Overloaded(StrettoError):
    """A server limit is reached; the request can be retried later."""


class NoCapacity(Overloaded):
    """The queue is full, so the request was rejected before any work."""


class Closing(StrettoError):
    """The server, or a part of it, accepts no new requests and finishes the current ones."""


class Cancelled(StrettoError):
    """The client cancelled the request."""


class CheckpointError(StrettoError):
    """A checkpoint file is missing or invalid, so the model is not loaded."""


def is_panic(error: BaseException) -> bool:
    """Return True for a panic of a library written in Rust, such as `tokenizers`, which is not an Exception."""
    return type(error).__name__ == "PanicException"


def incident(error: BaseException) -> str:
    """Return the id of an internal error, which the error gets at the first call.

    The client receives only this id. The logged traceback ends with it.
    """
    for note in getattr(error, "__notes__", ()):
        if note.startswith(INCIDENT):
            return note
    error.add_note(f"{INCIDENT}{secrets.token_hex(4)}")
    return incident(error)


def shown(value: object, limit: int = 60) -> str:
    """Return `repr(value)` for an error message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"


def argument_path(word: str) -> Path:
    """Parse a path in a command-line argument or its default, for argparse; `~` is a home folder."""
    try:
        return Path(word).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{word}: {error}") from None


class CommandParser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line, with a reference to --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
