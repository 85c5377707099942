"""Outcomes of recent speech responses, from which the client of a raw stream learns whether it was complete."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from stretto_contract.finish_reasons import CANCELLED, limit_of
from stretto_gateway.admission import CLIENT_LEFT
from stretto_gateway.answers import ApiError, SpeechOutcome
from stretto_gateway.caller_records import CallerRecords

MAX_OUTCOMES = 4096  # maximum for all callers; beyond it, the caller with most outcomes loses its oldest


class Outcomes:
    """Outcomes by caller and by the id of the request, which is in the header `x-request-id` of its response."""

    def __init__(self, max_outcomes: int = MAX_OUTCOMES):
        self._outcomes = CallerRecords[SpeechOutcome](max_outcomes)

    def find(self, owner: str, request_id: str) -> SpeechOutcome:
        """Return the outcome of a caller's own request; raise ApiError 404 if it is unknown."""
        outcome = self._outcomes.find(owner, request_id)
        if outcome is None:
            message = f"id: expected the x-request-id of a recent speech response, got {request_id[:60]!r}"
            raise ApiError(404, message, "id", "not_found")
        return outcome

    async def followed(
        self, owner: str, request_id: str, parts: AsyncGenerator[bytes, None], report: Mapping[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the parts of a response, and record how it ends; `report` is filled once they are complete."""
        outcome: SpeechOutcome = {"id": request_id, "status": "in_progress", "bytes": 0, "error": None}
        self._outcomes.add(owner, request_id, outcome)
        try:
            async with aclosing(parts):
                async for data in parts:
                    outcome["bytes"] += len(data)
                    yield data
        except CLIENT_LEFT:
            outcome["status"] = outcome["finish_reason"] = CANCELLED
            raise
        except Exception as error:
            outcome["status"] = "failed"
            outcome["error"] = error.message if isinstance(error, ApiError) else "internal error"
            raise
        limit = limit_of(report)
        outcome["status"] = "completed" if limit is None else "incomplete"
        if limit is not None:
            outcome["finish_reason"] = limit
