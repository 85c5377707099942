"""Event streams of responses, with metrics and with errors mapped to API errors."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from stretto_client import ClientError, Speech, SpeechEvent
from stretto_gateway.answers import ApiError, from_client_error
from stretto_gateway.trace import SpeechTrace, Trace


async def told(stream: Speech, fields: dict[str, str]) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of `stream` and close it at the end.

    Args:
        stream: Response of the server.
        fields: Caller's field names by the server's.

    Raises:
        ApiError: The stream fails.
    """
    try:
        async with stream:
            async for event in stream:
                yield event
    except ClientError as error:
        raise from_client_error(error, fields) from None


async def written(stream: Speech, fields: dict[str, str], trace: Trace) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a text response and record them in `trace`; raise ApiError if it fails."""
    trace.start()
    try:
        async with aclosing(told(stream, fields)) as events:
            async for event in events:
                trace.add(event)
                yield event
    finally:
        trace.close()


async def heard(stream: Speech, fields: dict[str, str], trace: SpeechTrace) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a speech response; raise ApiError if it fails or has no samples."""
    async with aclosing(written(stream, fields, trace)) as events:
        async for event in events:
            yield event
    if not trace.has_sound:
        raise ApiError(502, "the model has said nothing", code="no_audio")


def followed(stream: Speech, fields: dict[str, str], trace: Trace) -> AsyncGenerator[SpeechEvent, None]:
    """Yield the events of a speech or text response, depending on the type of the trace."""
    return heard(stream, fields, trace) if isinstance(trace, SpeechTrace) else written(stream, fields, trace)
