"""gRPC stream for the parts of a text that is spoken while it is written; each part gets one response."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import ServerFailed, TimedOut, from_rpc, from_text
from stretto_client.inputs import strings


class PartStream:
    """Stream of text parts to `model`; `async with` closes it.

    Args:
        client: Client of the server.
        model: Name of the ensemble.
        server: Address of the server (host:port), for error messages.
        timeout_s: Longest wait for the response to a part, in seconds.
    """

    def __init__(self, client: InferenceServerClient, model: str, server: str, timeout_s: float):
        self._client, self._model, self._server, self._timeout_s = client, model, server, timeout_s
        self._requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._responses: Any = None

    async def write(self, session: str, part: int, text: str, is_last: bool) -> None:
        """Send the next part of the text of `session` and wait until it is accepted; raise ClientError otherwise."""
        record = json.dumps({"id": session, "part": part, "is_last": is_last})
        self._requests.put_nowait({"model_name": self._model, "inputs": strings(text=text, session=record)})
        if self._responses is None:
            self._responses = self._client.stream_infer(self._sent())
        try:
            async with asyncio.timeout(self._timeout_s):
                _, error = await anext(self._responses)
        except StopAsyncIteration:
            raise ServerFailed("the stream ended before the text did") from None
        except TimeoutError:
            raise TimedOut(f"{self._server}: no answer to a part of the text within {self._timeout_s:g} s") from None
        except grpc.RpcError as failure:
            raise from_rpc(failure, self._server) from failure
        if error is not None:
            raise from_text(error.message())

    async def _sent(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self._requests.get()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._responses is not None:
            self._responses.cancel()
