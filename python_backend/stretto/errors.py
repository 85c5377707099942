"""The exception tree. It knows no transport: the rim turns these into Triton errors.

StrettoError
├── InvalidRequest      the caller's mistake; answered on that request alone
├── Overloaded          a limit of the server; try again when some of its work is done
│   └── NoPlace         nothing of the request was begun, because as many as may wait are waiting
├── Closing             the server, or a part of it, ends; try again later
├── Cancelled           the client went away
└── CheckpointError     a file of a checkpoint is missing or does not fit; the model does not load
"""

import secrets

INCIDENT = "internal error "


class StrettoError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidRequest(StrettoError, ValueError):
    """A request that cannot be served: names the field, the limit and what came."""

    def __init__(self, field: str, expected: str, got: object):
        super().__init__(f"{field}: expected {expected}, got {got}")
        self.field, self.expected, self.got = field, expected, got


class Overloaded(StrettoError):
    """The server has as much work as it takes."""


class NoPlace(Overloaded):
    """As many requests wait as may, so this one was not begun."""


class Closing(StrettoError):
    """The server, or this part of it, takes no more work, and ends what it has."""


class Cancelled(StrettoError):
    """The client cancelled the request."""


class CheckpointError(StrettoError):
    """A checkpoint that does not load."""


def incident(error: BaseException) -> str:
    """What a client is told of a failure of ours, and nothing else of it; the logged traceback ends with it, too."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(INCIDENT):
            return note
    error.add_note(f"{INCIDENT}{secrets.token_hex(4)}")
    return incident(error)


def shown(value: object, limit: int = 60) -> str:
    """`value` for an error message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
