"""gRPC stream for the parts of streamed text or live audio."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import ServerFailed, TimedOut, from_rpc, from_text
from stretto_client.speech_stream import audio_inputs, strings


class PartStream:
    """gRPC stream for parts of streamed text or live audio; `async with` closes it.

    Args:
        timeout_s: Maximum time to wait for the acknowledgement of a part, in seconds.
    """

    def __init__(
        self,
        client: InferenceServerClient,
        model: str,
        server: str,
        timeout_s: float,
        headers: dict[str, str] | None = None,
    ):
        self._client = client
        self._model = model
        self._server = server
        self._timeout_s = timeout_s
        self._headers = headers
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # None ends the stream
        self._responses: Any = None

    async def write(self, session: str, number: int, text: str, is_last: bool) -> None:
        """Send part `number` (from 0) of a text; wait until the server accepts it, or raise ClientError."""
        await self._send(strings(text=text, session=session_json(session, number, is_last)))

    async def write_audio(self, session: str, number: int, audio: tuple[NDArray[Any], int], is_last: bool) -> None:
        """Send part `number` (from 0) of live audio; wait until the server accepts it, or raise ClientError.

        The server acknowledges the part once at most 2 s of the audio are still unread by the model.

        Args:
            audio: Samples [n], where n may be 0, and their rate in Hz.
        """
        inputs = audio_inputs(audio) if len(audio[0]) else []
        await self._send([*inputs, *strings(session=session_json(session, number, is_last))])

    async def _send(self, inputs: list[InferInput]) -> None:
        self._requests.put_nowait({"model_name": self._model, "inputs": inputs})
        if self._responses is None:
            self._responses = self._client.stream_infer(self._sent(), headers=self._headers)
        try:
            async with asyncio.timeout(self._timeout_s):
                _, error = await anext(self._responses)
        except StopAsyncIteration:
            raise ServerFailed("the stream ended before its last part") from None
        except TimeoutError:
            raise TimedOut(f"{self._server}: no answer to a part within {self._timeout_s:g} s") from None
        except grpc.RpcError as failure:
            raise from_rpc(failure, self._server) from failure
        if error is not None:
            raise from_text(error.message())

    async def _sent(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._responses is not None:
            self._requests.put_nowait(None)  # gRPC reads requests on in a task of its own if the call has failed before
            self._responses.cancel()


def session_json(session: str, number: int, is_last: bool) -> str:
    """Return the content of the tensor `session` for a part."""
    return json.dumps({"id": session, "part": number, "is_last": is_last})
