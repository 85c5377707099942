"""`POST /v1/audio/speech/batch`: speech of several texts, in one JSON response."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncGenerator, Coroutine, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import Response

from stretto_gateway.admission import Result, unless_disconnected
from stretto_gateway.answers import ApiError, Batch, error_path, mismatch
from stretto_gateway.catalogue import speaks
from stretto_gateway.encoding import MEDIA_TYPES
from stretto_gateway.events import Streamed
from stretto_gateway.fields import Ignored, check_options_size
from stretto_gateway.gateway import Gateway
from stretto_gateway.receipt_draft import Draft
from stretto_gateway.speech import DRAFT, audio_parts, quality, speech_options
from stretto_gateway.speech_request import SpeechFields, SpeechItem, given_options
from stretto_gateway.whole_file import WHOLE_HOLD_S, AudioBudget, whole_file

router = APIRouter()
MAX_ITEMS = 1024  # maximum for validation; the gateway's own limit is lower
PART_BYTES = 49_152  # audio encoded at once, in 0.1 ms; a multiple of 3, so that base64 pads only the last part


class BatchRequest(SpeechFields):
    """Batch of texts to speak. The other fields are defaults for all items."""

    items: Annotated[list[SpeechItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def few_options_each(cls, record: Any) -> Any:
        """Return `record`; raise ApiError if the options of an item exceed the server's JSON limits."""
        items = record.get("items") if isinstance(record, dict) else None
        for index, item in enumerate(items[:MAX_ITEMS] if isinstance(items, list) else ()):
            if isinstance(item, dict):
                with error_path(f"items.{index}"):
                    check_options_size(given_options(item))
        return record

    def each(self) -> list[SpeechItem]:
        """Return the items with defaults filled in; raise ApiError if the options of an item become too large."""
        shared = self.model_dump(exclude_unset=True, exclude={"items"})
        items = []
        for index, item in enumerate(self.items):
            fields = {name: value for name, value in item.model_dump(exclude_unset=True).items() if value is not None}
            with error_path(f"items.{index}"):
                items.append(SpeechItem(**shared | fields))
        return items


@router.post("/v1/audio/speech/batch", response_model=Batch)
async def create_batch(body: BatchRequest, request: Request) -> Response:
    """Generate the audio of all `items`. Results are in the order of the items and contain the audio in base64."""
    gateway: Gateway = request.app.state.gateway
    if len(body.items) > gateway.limits.max_batch:
        raise mismatch("items", f"at most {gateway.limits.max_batch} items", f"{len(body.items)} items")
    ignored = Ignored(body, gateway.strict)
    items = body.each()
    max_bytes = gateway.limits.max_batch_bytes
    excess = f"the batch has more than {max_bytes} bytes of audio; send fewer items at once"
    room = AudioBudget(max_bytes, "input", excess)
    works = (result(gateway, index, item, room, request.state, ignored) for index, item in enumerate(items))
    results = await unless_disconnected(request.receive, together(works))
    answer = Streamed(batch_parts(results), "application/json", gateway.limits.stall_s)
    answer.headers.update(ignored.headers)
    return answer


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Run the coroutines `works` concurrently and return their results in order; if one fails, cancel the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


@dataclass(frozen=True, slots=True)
class ItemResult:
    """Result for one text.

    Attributes:
        fields: Fields of SpokenItem without `audio_data`, or of FailedItem.
        audio: The file; None if it failed.
    """

    fields: dict[str, Any]
    audio: bytes | bytearray | None = None


async def batch_parts(results: list[ItemResult]) -> AsyncGenerator[bytes, None]:
    """Yield the JSON of `Batch`. Audio is encoded as it is sent, because all of it would block the event loop."""
    succeeded = sum(result.audio is not None for result in results)
    counts = {"total": len(results), "succeeded": succeeded, "failed": len(results) - succeeded}
    head = json.dumps({"id": f"batch_{secrets.token_hex(12)}"} | counts)
    yield f'{head[:-1]}, "results": ['.encode()
    for index, result in enumerate(results):
        fields = json.dumps(result.fields)[:-1]
        yield f"{', ' if index else ''}{fields}".encode()
        if result.audio is not None:
            yield b', "audio_data": "'
            for begin in range(0, len(result.audio), PART_BYTES):
                yield base64.b64encode(result.audio[begin : begin + PART_BYTES])
            yield b'"'
        yield b"}"
    yield b"]}"


async def result(
    gateway: Gateway, index: int, item: SpeechItem, room: AudioBudget, asked: State, ignored: Ignored
) -> ItemResult:
    """Generate the audio of one text of a batch, and return it or the error."""
    try:
        gateway = await gateway.for_model(item.model, speaks)
        options = await speech_options(gateway, item, asked, ignored)
        options["hold_s"] = max(item.hold_s, WHOLE_HOLD_S)
        report = dict[str, Any]()
        draft = Draft(item.input, f"{asked.request_id}.{index}", item.response_format, item.speed or 1.0)
        if gateway.receipts is not None:
            report[DRAFT] = draft
        parts = audio_parts(gateway, item, item.input, options, ignored, report)
        audio: bytes | bytearray = await whole_file(item, parts, room, asked)
        signed = {}
        if gateway.receipts is not None:
            audio = await gateway.receipts.complete(audio, draft, asked)
            receipt = gateway.receipts.signed(draft)
            asked.keep(len(receipt))
            signed = {"receipt": json.loads(receipt)}
    except ApiError as error:
        return ItemResult({"index": index, "status": "error", "error": error.message})
    fields: dict[str, Any] = {"index": index, "status": "success", "media_type": MEDIA_TYPES[item.response_format]}
    return ItemResult(fields | quality(report) | signed, audio)
