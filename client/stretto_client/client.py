"""An asynchronous client of the ensemble: one gRPC stream per utterance, so that cancelling one leaves the others."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import InferenceServerException, InferInput, InferResult
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.errors import ClientError, RequestCancelled, ServerFailed, TimedOut, from_rpc, from_text
from stretto_client.event import SpeechEvent, is_last, read_event
from stretto_client.inputs import Audio, audio_inputs, given, options_json, strings
from stretto_client.regions import Memory
from stretto_client.ring import RingSize
from stretto_client.server_key import key_headers
from stretto_client.sharing import Sharing
from stretto_client.timeouts import Timeouts


class SpeechStream:
    """The events of one utterance, in order. `cancel` or `aclose` (or leaving `async with`, or dropping the
    object) gives it up.

    Raises a ClientError instead of the next event when there is none to come.
    """

    def __init__(self, responses: Any, client: "SpeechClient", sharing: Sharing | None = None):
        self._responses = responses
        self._client, self._sharing = client, sharing
        self._timeouts, self._server = client.timeouts, client.server
        self._started_s = time.monotonic()
        self._is_first = True
        self._is_complete = False  # the last event has been seen
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        while not self._is_over:
            result = await self._next_response()
            if result is None:
                break
            event = read_event(result, None if self._sharing is None else self._sharing.ring)
            if is_last(result):
                self._end()
            if event is not None:
                self._is_complete = event.is_final
                return event
        self._end()
        if not self._is_complete:
            raise self._failed(ServerFailed("the stream ended before the utterance did"))
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Give the utterance up; the server stops working on it. A pending or later read raises RequestCancelled."""
        self._responses.cancel()

    async def aclose(self) -> None:
        """Give the utterance up and read no more."""
        self._is_complete = True
        self.cancel()
        self._end()

    def __del__(self) -> None:
        # A stream left by `break` and dropped: the server must not speak on to nobody.
        if not self._is_over:
            self.cancel()
            self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._sharing is not None:
                self._client.take_back(self._sharing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _next_response(self) -> InferResult | None:
        """The next response, or None at the end of the stream."""
        limit, waits_for = self._patience()
        try:
            async with asyncio.timeout(limit):
                result, error = await anext(self._responses)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise self._failed(TimedOut(f"{self._server}: {waits_for}")) from None
        except grpc.RpcError as error:
            raise self._failed(from_rpc(error, self._server)) from error
        except asyncio.CancelledError:
            cancelled_by_caller = (task := asyncio.current_task()) is not None and task.cancelling()
            failure = self._failed(RequestCancelled("the request was cancelled"))
            if cancelled_by_caller:
                raise
            raise failure from None
        if error is not None:
            raise self._failed(from_text(error.message()))
        self._is_first = False
        return result

    def _patience(self) -> tuple[float, str]:
        """Seconds to wait for the next response, and what to say when they have passed."""
        limits = self._timeouts
        left_s = limits.total_s - (time.monotonic() - self._started_s)
        next_s = limits.first_s if self._is_first else limits.between_s
        if left_s < next_s:
            return max(left_s, 0.0), f"the utterance was not complete after {limits.total_s:g} s"
        which = "first" if self._is_first else "next"
        return next_s, f"no {which} response within {next_s:g} s"

    def _failed(self, error: ClientError) -> ClientError:
        self._is_complete = True
        self._responses.cancel()
        self._end()
        return error


class SpeechClient:
    """Speaks and transcribes through the server at `server` (host:port of its gRPC service).

    shared_memory: `system` or `cuda`: audio goes to a server on the same host, and samples come back, through memory
    that both see. ring: how much of it holds the samples of one utterance that have not been read yet.
    """

    def __init__(
        self,
        server: str = "localhost:8001",
        timeouts: Timeouts | None = None,
        model: str = "speech",
        shared_memory: Memory | None = None,
        ring: RingSize | None = None,
    ):
        if shared_memory not in (None, "system", "cuda"):
            raise ValueError(f"shared_memory: expected 'system' or 'cuda', got {shared_memory!r}")
        self.server = server
        self.timeouts = timeouts or Timeouts()
        self.model = model
        self._memory, self._ring_size = shared_memory, ring or RingSize()
        self._shared: set[Sharing] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._client = InferenceServerClient(server)

    def speak(
        self,
        text: str,
        /,
        *,
        task: str = "tts",
        voice: str | None = None,
        seed: int | None = None,
        guidance_scale: float | None = None,
        encoding: str | None = None,
        sample_rate: int | None = None,
        **options: Any,
    ) -> SpeechStream:
        """The events of `text` being spoken.

        task: what the model calls that; one that writes first says so in the events' text.
        encoding: `pcm_f32le` (the default) or `pcm_s16le`; sample_rate: in Hz, by default the codec's.
        options: as the server knows them, e.g. `audio={"temperature": 0.5}` or `chunking={"playout_s": 0.2}`.
        """
        sharing = self._share()
        ring = None if sharing is None else sharing.make_ring().option()
        output = options.get("output", {}) | given({"encoding": encoding, "sample_rate": sample_rate, "ring": ring})
        options |= {"voice": voice, "seed": seed, "guidance_scale": guidance_scale, "output": output or None}
        return self.send(strings(text=text, task=task, options=options_json(options)), sharing)

    def transcribe(self, audio: Audio, /, *, task: str = "asr", **options: Any) -> SpeechStream:
        """The events of `audio` being written down: a file's path or bytes, or (samples [n], rate in Hz).

        task: what the model calls that, such as `understand`.
        """
        sharing = self._share()
        inputs = [*audio_inputs(audio, sharing=sharing), *strings(task=task, options=options_json(options))]
        return self.send(inputs, sharing)

    def converse(
        self,
        messages: list[dict[str, Any]],
        /,
        *audio: Audio,
        task: str | None = None,
        **options: Any,
    ) -> SpeechStream:
        """The events of the reply to a conversation: turns with `role` and `text`, `audio` or `codes`.

        audio: what the turns mean that say `"audio": "audio"` (files, in this order) and `"audio": "pcm_in"` (samples,
        which one turn may have).
        """
        sharing = self._share()
        inputs = audio_inputs(*audio, sharing=sharing)
        inputs += strings(messages=json.dumps(messages), task=task, options=options_json(options))
        return self.send(inputs, sharing)

    def send(self, inputs: list[InferInput], sharing: Sharing | None = None) -> SpeechStream:
        """The events that answer `inputs`, tensors of the ensemble; `sharing` holds what they have in shared memory."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            if sharing is not None:
                await sharing.register(self._client)
            yield {"model_name": self.model, "inputs": inputs}

        responses = self._client.stream_infer(requests())
        return SpeechStream(responses, self, sharing)

    def take_back(self, sharing: Sharing) -> None:
        """Free an utterance's memory in the background; what is left over is freed by `close`."""
        with suppress(RuntimeError):  # dropped when no event loop runs any more
            task = asyncio.get_running_loop().create_task(self._free(sharing))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _share(self) -> Sharing | None:
        if self._memory is None:
            return None
        sharing = Sharing(self._memory, self._ring_size, key_headers(self.server))
        self._shared.add(sharing)
        return sharing

    async def _free(self, sharing: Sharing) -> None:
        self._shared.discard(sharing)
        with suppress(InferenceServerException, grpc.RpcError):  # the server may be gone
            await sharing.close(self._client)

    async def ready(self) -> bool:
        """Whether the server answers and the model takes requests."""
        try:
            return await self._client.is_server_ready() and await self._client.is_model_ready(self.model)
        except (InferenceServerException, grpc.RpcError):
            return False

    async def close(self) -> None:
        """Free all shared memory and close the connection."""
        await asyncio.gather(*self._closing, *(self._free(sharing) for sharing in list(self._shared)))
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
