"""Exception hierarchy. Transport-independent; `triton_io` maps these to Triton errors.

StrettoError
├── InvalidRequest      caller's mistake; reported for that request only
├── Overloaded          a server limit is reached; can be retried later
│   └── NoCapacity         rejected before any work, because the queue is full
├── Closing             the server, or a part of it, is shutting down; can be retried later
├── Cancelled           the client disconnected or cancelled
└── CheckpointError     a checkpoint file is missing or invalid; the model does not load
"""

import secrets

INCIDENT = "internal error "


class StrettoError(Exception):
    """Base of all errors raised on purpose by this package."""


class InvalidRequest(StrettoError, ValueError):
    """Invalid request; the message names the field, the limit and the value."""

    def __init__(self, field: str, expected: str, got: object):
        super().__init__(f"{field}: expected {expected}, got {got}")
        self.field, self.expected, self.got = field, expected, got


class Overloaded(StrettoError):
    """The server has as much work as it accepts."""


class NoCapacity(Overloaded):
    """The queue is full, so the request was not begun."""


class Closing(StrettoError):
    """The server, or a part of it, accepts no new requests and finishes the current ones."""


class Cancelled(StrettoError):
    """The client cancelled the request."""


class CheckpointError(StrettoError):
    """A checkpoint does not load."""


def incident(error: BaseException) -> str:
    """Return the incident id of an internal error: all that a client sees; the logged traceback ends with it."""
    for note in getattr(error, "__notes__", ()):
        if note.startswith(INCIDENT):
            return note
    error.add_note(f"{INCIDENT}{secrets.token_hex(4)}")
    return incident(error)


def shown(value: object, limit: int = 60) -> str:
    """Return `value` for an error message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
