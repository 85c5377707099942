"""`POST /v1/audio/speech/batch`: several texts, each with its own audio or its own error."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from stretto_gateway.answers import Batch, FailedItem, SpokenItem
from stretto_gateway.api_error import ApiError, refused, within
from stretto_gateway.caller import Result, unless_gone
from stretto_gateway.encoding import MEDIA_TYPES, wav_header
from stretto_gateway.gateway import Gateway
from stretto_gateway.given_options import options_bytes
from stretto_gateway.ignored import Ignored
from stretto_gateway.speech import audio_parts, speech_options
from stretto_gateway.speech_request import SpeechItem, SpeechOptions, given_options
from stretto_gateway.streamed import Streamed

router = APIRouter()
MAX_ITEMS = 1024  # validated at most; the gateway's own limit is lower
PART_BYTES = 65_536
WAV_HEADER_BYTES = len(wav_header(1))


class BatchRequest(SpeechOptions):
    """Texts to speak, and defaults for their fields."""

    items: Annotated[list[SpeechItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def few_options_each(cls, record: Any) -> Any:
        """Raise ApiError if the options of an item exceed the server's JSON limits; return `record` otherwise."""
        items = record.get("items") if isinstance(record, dict) else None
        for index, item in enumerate(items[:MAX_ITEMS] if isinstance(items, list) else ()):
            if isinstance(item, dict):
                with within(f"items.{index}"):
                    options_bytes(given_options(item))
        return record

    def each(self) -> list[SpeechItem]:
        """Return the items with the defaults filled in; raise ApiError if the options of one become too large."""
        shared = self.model_dump(exclude_unset=True, exclude={"items"})
        items = []
        for index, item in enumerate(self.items):
            with within(f"items.{index}"):
                items.append(SpeechItem(**shared | item.model_dump(exclude_unset=True)))
        return items


@router.post("/v1/audio/speech/batch", response_model=Batch)
async def create_batch(body: BatchRequest, request: Request) -> Response:
    """Generate the audio of all `items`; the results are in their order, with audio as base64."""
    gateway: Gateway = request.app.state.gateway
    if len(body.items) > gateway.limits.max_batch:
        raise refused("items", f"at most {gateway.limits.max_batch} items", f"{len(body.items)} items")
    ignored = Ignored(body, gateway.strict)
    items = body.each()
    room = Room(gateway.limits.max_batch_bytes)
    works = (result(gateway, index, item, room, request.state, ignored) for index, item in enumerate(items))
    results = await unless_gone(request.receive, together(works))
    succeeded = sum(each["status"] == "success" for each in results)
    batch: Batch = {
        "id": f"batch_{secrets.token_hex(12)}",
        "results": results,
        "total": len(results),
        "succeeded": succeeded,
        "failed": len(results) - succeeded,
    }
    answer = Streamed(parts_of(json.dumps(batch).encode()), "application/json", gateway.limits.stall_s)
    answer.headers.update(ignored.headers)
    return answer


async def parts_of(data: bytes) -> AsyncGenerator[bytes, None]:
    """Yield `data` in parts; data that the client has not read yet counts as held memory."""
    for begin in range(0, len(data), PART_BYTES):
        yield data[begin : begin + PART_BYTES]


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results of the `works`, in order; if one fails, the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


class Room:
    """Byte budget for the audio of a batch, which is kept until its last text has been spoken."""

    def __init__(self, num_bytes: int):
        self._size = self._left = num_bytes

    def take(self, num_bytes: int) -> None:
        """Use part of the budget; raise ApiError if it is exceeded."""
        self._left -= num_bytes
        if self._left < 0:
            raise ApiError(413, f"input: the batch has more than {self._size} bytes of audio; ask for fewer at once")


async def result(
    gateway: Gateway, index: int, item: SpeechItem, room: Room, asked: State, ignored: Ignored
) -> SpokenItem | FailedItem:
    """Return the audio of one text, or its error.

    Args:
        gateway: The gateway.
        index: Position of the text in the batch.
        item: The text with its fields.
        room: Byte budget of the batch.
        asked: State of the request.
        ignored: Collects the fields that are not honoured.
    """
    try:
        options = await speech_options(gateway, item, asked, ignored)
        audio = bytearray()
        async with aclosing(audio_parts(gateway, item, item.input, options)) as parts:
            async for part in parts:
                room.take(len(part))
                asked.keep(4 * len(part) // 3)  # as base64
                audio += part
    except ApiError as error:
        return {"index": index, "status": "error", "error": error.message}
    if item.response_format == "wav":  # the length is known now
        header = wav_header(item.sample_rate, len(audio) - WAV_HEADER_BYTES)
        audio[: len(header)] = header
    media_type = MEDIA_TYPES[item.response_format]
    return {
        "index": index,
        "status": "success",
        "audio_data": base64.b64encode(audio).decode(),
        "media_type": media_type,
    }
