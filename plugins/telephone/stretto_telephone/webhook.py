"""Webhook of the operator, which receives the events of calls and answers with the text to speak."""

import codecs
import json
from collections.abc import AsyncGenerator
from typing import Any

from stretto_gateway.answers import ApiError
from stretto_gateway.config import Limits
from stretto_gateway.outgoing import OutgoingError, sent, web_url

FIELD = "--call-webhook"


class Webhook:
    """Webhook for one call. The fields `call`, which describe it, are sent with each event."""

    def __init__(self, url: str, limits: Limits, call: dict[str, Any]):
        self._url = web_url(url)
        self._limits = limits
        self._call = call

    async def ask(self, event: str, **fields: Any) -> AsyncGenerator[str, None]:
        """Send an event; yield the answer as it arrives; raise ApiError if it is missing, too long or not text."""
        body = json.dumps({"event": event} | self._call | fields).encode()
        decoder = codecs.getincrementaldecoder("utf-8")()
        num_chars = 0
        try:
            async with sent(self._url, body, {"accept": "text/plain"}, self._limits.stall_s) as answer:
                if not 200 <= answer.status < 300:
                    raise OutgoingError(f"status {answer.status}")
                async for data in answer.content.iter_any():
                    num_chars += len(text := decoder.decode(data))
                    if num_chars > self._limits.max_input_chars:
                        raise OutgoingError(f"more than {self._limits.max_input_chars} characters")
                    if text:
                        yield text
                decoder.decode(b"", final=True)
        except OutgoingError as error:
            raise ApiError(
                502, f"{FIELD}: expected an answer to {event!r}, got {error}", FIELD, "bad_webhook"
            ) from None
        except UnicodeDecodeError:
            raise ApiError(502, f"{FIELD}: expected UTF-8, got other bytes", FIELD, "bad_webhook") from None
