"""The events behind an answer: from the server, counted, and with its failures as the caller is told of them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from stretto_client import ClientError, Speech, SpeechEvent
from stretto_gateway.api_error import ApiError, from_client_error
from stretto_gateway.trace import SpeechTrace, Trace


async def told(stream: Speech, fields: dict[str, str]) -> AsyncGenerator[SpeechEvent, None]:
    """The events of `stream`, which ends with them; ApiError where it fails.

    fields: what those of the server are called here.
    """
    try:
        async with stream:
            async for event in stream:
                yield event
    except ClientError as error:
        raise from_client_error(error, fields) from None


async def written(stream: Speech, fields: dict[str, str], trace: Trace) -> AsyncGenerator[SpeechEvent, None]:
    """The same of an answer that is text, which `trace` follows."""
    trace.start()
    try:
        async with aclosing(told(stream, fields)) as events:
            async for event in events:
                trace.add(event)
                yield event
    finally:
        trace.close()


async def heard(stream: Speech, fields: dict[str, str], trace: SpeechTrace) -> AsyncGenerator[SpeechEvent, None]:
    """The same of speech; ApiError, too, where there was no sound in it."""
    async with aclosing(written(stream, fields, trace)) as events:
        async for event in events:
            yield event
    if not trace.has_sound:
        raise ApiError(502, "the model has said nothing", code="no_audio")


def followed(stream: Speech, fields: dict[str, str], trace: Trace) -> AsyncGenerator[SpeechEvent, None]:
    """Either, as the trace is."""
    return heard(stream, fields, trace) if isinstance(trace, SpeechTrace) else written(stream, fields, trace)
