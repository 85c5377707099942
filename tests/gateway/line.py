"""Fake WebSocket for tests that check only messages."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any


class Line:
    """WebSocket without a network, with messages for the session and the events that it sends."""

    def __init__(self, messages: list[str | bytes]):
        self._left = iter(messages)
        self.said: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        message = next(self._left, None)
        if message is None:
            return {"type": "websocket.disconnect", "code": 1000}
        return {"type": "websocket.receive", "bytes" if isinstance(message, bytes) else "text": message}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "websocket.send" and message.get("text"):
            self.said.append(json.loads(message["text"]))
