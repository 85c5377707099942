"""Endpoints for mutated requests, and rules that all responses must satisfy."""

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc

ANSWER_S = 120.0  # a request without an answer by then has failed
# Our messages only describe the request: no code, no paths, no internal error text.
UNTOLD = re.compile(r"Traceback|\.py\b|/(?:usr|work|tmp|home|root|opt|proc|dev)/|site-packages|internal error|failed:")


@dataclass(frozen=True, slots=True)
class Doors:
    """Endpoints of a server and its gateway.

    Attributes:
        channel: gRPC channel.
        key: Metadata that opens the inner models.
        prompt: Tensors authenticated by the preprocessor, by name.
        answers: Number of answers of each kind, because mutated requests may still be valid.
    """

    channel: grpc.aio.Channel
    key: tuple[tuple[str, str], ...]
    prompt: dict[str, bytes]
    http_port: int
    gateway_port: int
    answers: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Sent:
    """A mutated request. `ask` sends it and returns the problems of the response."""

    what: str
    ask: Callable[[Doors], Awaitable[list[str]]]


def wrong_words(said: str) -> list[str]:
    """Return the problems of an error message."""
    found = UNTOLD.search(said)
    if found is None and said.strip():
        return []
    return [f"an error that says {said[:400]!r}"]
