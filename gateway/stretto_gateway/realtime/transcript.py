"""Transcripts of the user's audio, one recording at a time, alongside the conversation."""

import asyncio
from contextlib import aclosing
from typing import Any

from stretto_gateway.api_error import ApiError
from stretto_gateway.catalogue import find_task
from stretto_gateway.encoding import DEFAULT_RATE, wav_header
from stretto_gateway.events import written
from stretto_gateway.gateway import Gateway
from stretto_gateway.realtime.channel import Channel
from stretto_gateway.realtime.conversation import Item
from stretto_gateway.speech import usage
from stretto_gateway.trace import Trace

MAX_WAITING = 16  # recordings per session
NAME = "conversation.item.input_audio_transcription"


class Transcriber:
    """Background transcription of items, with an event for each piece of text."""

    def __init__(self, gateway: Gateway, channel: Channel):
        self._gateway, self._channel = gateway, channel
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[None]] = set()

    async def begin(self, item: Item, tasks: asyncio.TaskGroup) -> None:
        """Transcribe an item in the background; raise ApiError if there is no memory for its audio."""
        if len(self._running) >= MAX_WAITING:
            error = ApiError(429, f"{MAX_WAITING} recordings wait already; try again", code="rate_limit_exceeded")
            await self._fail(item, error)
            return
        held, num_bytes = self._gateway.sessions.held, len(item.parts[0].pcm)
        held.add(num_bytes)  # in addition to the conversation's account, because the item may be deleted there
        task = tasks.create_task(self._run(item))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: held.remove(num_bytes))

    async def complete(self) -> None:
        """Wait until all transcripts are complete."""
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, item: Item) -> None:
        try:
            async with self._turn:
                await self._write(item)
        except ApiError as error:
            await self._fail(item, error)

    async def _write(self, item: Item) -> None:
        task = find_task(await self._gateway.catalogue.profile(), ("asr",), "write down what it hears")
        pcm, text, report = item.parts[0].pcm, "", dict[str, Any]()
        trace = Trace(self._gateway.metrics, task.name)
        async with self._gateway.admission.place():
            stream = self._gateway.client.transcribe(wav_header(DEFAULT_RATE, len(pcm)) + pcm)
            async with aclosing(written(stream, {}, trace)) as events:
                async for event in events:
                    report = event.report or report
                    text += event.text
                    if event.text:
                        await self._tell(item, "delta", delta=event.text)
        item.parts[0].text = text.strip()
        await self._tell(item, "completed", transcript=text.strip(), usage={"type": "tokens"} | usage(report))

    async def _fail(self, item: Item, error: ApiError) -> None:
        await self._tell(item, "failed", error=error.record()["error"])

    async def _tell(self, item: Item, what: str, **fields: Any) -> None:
        await self._channel.send(f"{NAME}.{what}", item_id=item.item_id, content_index=0, **fields)
