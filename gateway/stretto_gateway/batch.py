"""`POST /v1/audio/speech/batch`: many texts, each with its own sound or its own error."""

import asyncio
import base64
import secrets
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request

from stretto_gateway.api_error import ApiError, refused
from stretto_gateway.caller import unless_gone
from stretto_gateway.encoding import MEDIA_TYPES
from stretto_gateway.gateway import Gateway
from stretto_gateway.speech import audio_parts, speech_options
from stretto_gateway.speech_request import SpeechItem, SpeechOptions

router = APIRouter()
MAX_ITEMS = 1024  # that are looked at; a gateway has a limit of its own below


class BatchRequest(SpeechOptions):
    """Texts, and what holds for all of them that do not say otherwise."""

    items: Annotated[list[SpeechItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


@router.post("/v1/audio/speech/batch")
async def create_batch(body: BatchRequest, request: Request) -> dict[str, Any]:
    """The results in the order of `items`, audio as base64."""
    gateway: Gateway = request.app.state.gateway
    if len(body.items) > gateway.limits.max_batch:
        raise refused("items", f"at most {gateway.limits.max_batch} items", f"{len(body.items)} items")
    shared = body.model_dump(exclude_unset=True, exclude={"items"})
    items = [SpeechItem(**shared | item.model_dump(exclude_unset=True)) for item in body.items]
    results = await unless_gone(request.receive, asyncio.gather(*(result(gateway, *pair) for pair in enumerate(items))))
    succeeded = sum(each["status"] == "success" for each in results)
    return {
        "id": f"batch_{secrets.token_hex(12)}",
        "results": results,
        "total": len(results),
        "succeeded": succeeded,
        "failed": len(results) - succeeded,
    }


async def result(gateway: Gateway, index: int, item: SpeechItem) -> dict[str, Any]:
    """What came of one text."""
    try:
        options = await speech_options(gateway, item)
        audio = b"".join([part async for part in audio_parts(gateway, item, options)])
    except ApiError as error:
        return {"index": index, "status": "error", "error": error.message}
    media_type = MEDIA_TYPES[item.response_format]
    return {
        "index": index,
        "status": "success",
        "audio_data": base64.b64encode(audio).decode(),
        "media_type": media_type,
    }
