"""An asynchronous client of the ensemble: one gRPC stream per utterance, so that cancelling one leaves the others."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
from tritonclient.grpc import InferenceServerException, InferInput
from tritonclient.grpc.aio import InferenceServerClient

from stretto_client.inputs import Audio, audio_inputs, given, options_json, strings
from stretto_client.live_speech import speak_written
from stretto_client.long_speech import LongSpeech, Speech, cut, is_short
from stretto_client.markup import MARKUPS, Markup, has_marks
from stretto_client.model_profile import ModelProfile, fetch_profile
from stretto_client.part_stream import PartStream
from stretto_client.produced_speech import ProducedSpeech
from stretto_client.recorded_voice import RecordedVoice, speech_inputs
from stretto_client.regions import Memory
from stretto_client.ring import RingSize
from stretto_client.server_key import key_headers
from stretto_client.sharing import Sharing
from stretto_client.speech_stream import SpeechStream
from stretto_client.timeouts import Timeouts

# gRPC's windows would grow to megabytes, minutes of speech that nobody has read. The rest is as tritonclient has it.
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
]


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
        self._client = InferenceServerClient(server, channel_args=CHANNEL)
        self._profile: ModelProfile | None = None

    async def profile(self, refresh: bool = False) -> ModelProfile:
        """What the model is, as `fetch_profile` has it; asked for once, unless it may be another one by now."""
        if self._profile is None or refresh:
            self._profile = await fetch_profile(self._client, self.model, self.server, self.timeouts.first_s)
        return self._profile

    def speak(
        self,
        text: str | AsyncIterable[str],
        /,
        *,
        task: str = "tts",
        voice: str | RecordedVoice | None = None,
        seed: int | None = None,
        guidance_scale: float | None = None,
        encoding: str | None = None,
        sample_rate: int | None = None,
        markup: Markup = "none",
        **options: Any,
    ) -> Speech:
        """The events of `text` being spoken. With the task `tts` it may be of any length.

        What is longer than the model speaks at once is cut where a speaker draws breath; each clause is spoken with the
        same options and the same seed, and asked for while the one before is heard. A text that is still being written
        is an async iterable of pieces, cut anywhere: spoken as they come, or by sentences where the model cannot.
        task: what the model calls that; one that writes first says so in the events' text.
        markup: marks in the text that are not to be read aloud, of the task `tts`: `markdown`, `ssml`, or `auto`, which
        is SSML for a text that begins with `<speak` and else Markdown; `none`, the default, speaks the text as it is.
        encoding: `pcm_f32le` (the default) or `pcm_s16le`; sample_rate: in Hz, by default the codec's.
        options: as the server knows them, e.g. `audio={"temperature": 0.5}` or `chunking={"playout_s": 0.2}`.
        """
        if markup not in MARKUPS:
            raise ValueError(f"markup: expected one of {', '.join(MARKUPS)}, got {markup!r}")
        options |= {"voice": voice, "seed": seed, "guidance_scale": guidance_scale}
        options["output"] = options.get("output", {}) | given({"encoding": encoding, "sample_rate": sample_rate})
        if not isinstance(text, str):
            return ProducedSpeech(partial(speak_written, self, task, options, text, markup=markup))
        if markup != "none" and not has_marks(text):
            markup = "none"
        if task != "tts" or (is_short(text) and markup == "none"):
            return self.speak_once(task, options, text)
        options["seed"] = secrets.randbits(32) if seed is None else seed
        return LongSpeech(partial(self.speak_once, task, options), partial(cut, text, self.profile, markup))

    def speak_once(
        self, task: str, options: dict[str, Any], text: str, timeouts: Timeouts | None = None
    ) -> SpeechStream:
        """The events of one request to speak; `options["output"]` is there. timeouts: others than the client's."""
        sharing = self._share()
        ring = None if sharing is None else sharing.make_ring().option()
        output = options["output"] | given({"ring": ring})
        options = options | {"output": output or None}
        return self.send(speech_inputs(text, task, options, sharing), sharing, timeouts)

    def transcribe(self, audio: Audio, /, *, task: str = "asr", **options: Any) -> SpeechStream:
        """The events of `audio` being written down: a file's path or bytes, or (samples [n], rate in Hz).

        task: what the model calls that, such as `understand`.
        """
        sharing = self._share()
        inputs = [*audio_inputs(audio, sharing=sharing), *strings(task=task, options=options_json(options))]
        return self.send(inputs, sharing)

    def converse(
        self, messages: list[dict[str, Any]], /, *audio: Audio, task: str | None = None, **options: Any
    ) -> SpeechStream:
        """The events of the reply to a conversation: turns with `role` and `text`, `audio` or `codes`.

        audio: what the turns mean that say `"audio": "audio"` (files, in this order) and `"audio": "pcm_in"` (samples,
        which one turn may have).
        """
        sharing = self._share()
        inputs = audio_inputs(*audio, sharing=sharing)
        inputs += strings(messages=json.dumps(messages), task=task, options=options_json(options))
        return self.send(inputs, sharing)

    def send(
        self, inputs: list[InferInput], sharing: Sharing | None = None, timeouts: Timeouts | None = None
    ) -> SpeechStream:
        """The events that answer `inputs`, tensors of the ensemble; `sharing` holds what they have in shared memory."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            if sharing is not None:
                await sharing.register(self._client)
            yield {"model_name": self.model, "inputs": inputs}

        responses = self._client.stream_infer(requests())
        return SpeechStream(responses, self, sharing, timeouts)

    def parts(self) -> PartStream:
        """A stream for the parts of a text that is spoken while it is written."""
        return PartStream(self._client, self.model, self.server, self.timeouts.between_s)

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
