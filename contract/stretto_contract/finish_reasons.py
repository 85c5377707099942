"""Reasons for the end of a reply, as `finish_reason` in reports, headers and events."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

# Limits that end a reply before the model does: a maximum length of the request or of the model, the maximum length of
# speech for the text, or codes that repeat themselves.
Limit = Literal["length", "ceiling", "repetition"]
LIMITS: tuple[Limit, ...] = get_args(Limit)
FinishReason = Literal["stop"] | Limit
STOP: FinishReason = "stop"
CANCELLED: Literal["cancelled"] = "cancelled"  # the client has left or does not read; such a reply has no report


def limit_of(report: Mapping[str, Any]) -> Limit | None:
    """Return the limit that ended a reply, from its report; None if the model ended it."""
    reason = report.get("finish_reason", STOP)
    return None if reason == STOP else reason
