"""gRPC stream of an utterance: request tensors, events, timeouts and cancellation.

This module also defines the conversations and recorded voices that a request may contain.
"""

import asyncio
import json
import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferResult

from stretto_client.errors import ClientError, RequestCancelled, ServerFailed, TimedOut, Timeouts, from_rpc, from_text
from stretto_client.markup import Markup
from stretto_client.shared_memory import Ring, Sharing
from stretto_client.voices import Audio, MarkedVoices, RecordedVoice
from stretto_contract.joins import Join
from stretto_contract.schema import Encoding, OptionsRecord, SpeechOptions
from stretto_contract.speech_checks import Check
from stretto_contract.transcripts import Passage

STRING_HEAD = 4  # size of a string's length prefix, in bytes
SAMPLES = {"pcm": np.float32, "pcm16": np.int16}


@dataclass(frozen=True, slots=True)
class Word:
    """Word with its times in an utterance or in a transcribed recording.

    Attributes:
        word: The word, as it is spelled in the text.
        start_s: Start in seconds.
        end_s: End in seconds; None unless the word was aligned or the model itself reports its end.
        score: Mean probability of the word's letters in the audio; None unless the word was aligned.
        text_start: Index of the word's first character in the text of the request; None if unknown.
        text_end: Index of the character after the word.
    """

    word: str
    start_s: float
    end_s: float | None = None
    score: float | None = None
    text_start: int | None = None
    text_end: int | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Create a word from an event record; ignore keys that a later server version may add."""
        return cls(
            record["word"],
            record["start_s"],
            record.get("end_s"),
            record.get("score"),
            record.get("text_start"),
            record.get("text_end"),
        )

    def shifted(self, seconds: float) -> "Word":
        """Return this word with its times `seconds` later."""
        end_s = None if self.end_s is None else self.end_s + seconds
        return replace(self, start_s=self.start_s + seconds, end_s=end_s)


@dataclass(frozen=True, slots=True)
class GuidanceChange:
    """Time at which guidance is switched on or off, in seconds from the utterance's start."""

    start_s: float
    is_guided: bool


@dataclass(frozen=True, slots=True)
class SpeechEvent:
    """Next part of an utterance.

    Attributes:
        pcm: Mono samples [n], float32 in [-1, 1] or, if requested, int16; None if the event has only text.
        utterance: Id of the utterance.
        index: Number of the event.
        segment: `text`, `audio` or `tail` (the rows that complete the last frames).
        text: Text generated since the previous event.
        words: Words that start in these samples; aligned words are all in the last event.
        start_s: Start of `pcm` in the utterance, in seconds.
        duration_s: Duration of `pcm` in seconds.
        sample_rate: Sample rate of `pcm` in Hz.
        is_final: True for the last event.
        report: Finish reason, counts, seed, guidance and timings; only in the last event. `untimed_words` lists the
            words of the text without a time, which the model may have skipped. `left_out` lists the tags of language
            models that were not spoken.
        guidance_changes: Guidance changes in these frames; always empty for the guidance policy `always`.
        codes: Codes [S, T] of all streams if `output={"codes": True}`, in the form that `messages` accepts.
        session: Id with which the client sends more text; only in the first event of streamed text.
        pauses: With `pauses=True`, the probability of each pause (`ModelProfile.pauses_s`) for each frame since the
            last event.
        begun: With `progress=True`, words that are complete since the last event. `words` contains them once their ends
            are known.
        transcribed_s: Time in the recording up to which the transcript is complete, in seconds. It is None without
            `progress=True`, except in live transcripts of a model that reads whole recordings.
        passages: Passages of a transcript that are complete since the last event; always empty for a model that does
            not report them.
        marker: Name of the marker of `pcm`, by which a detector recognises generated speech; empty if it is not marked.
        speed: Rate at which the samples are to be played, from SSML; 2 halves the duration. It is 1 unless
            `SpeechClient.speak` has the argument `rates`.
        redrawn_s: Duration in seconds of the speech of an attempt that has just been abandoned, so that the clause is
            generated again; None if the event does not report one.
    """

    pcm: NDArray[Any] | None
    utterance: str
    index: int
    segment: str
    text: str = ""
    words: tuple[Word, ...] = ()
    start_s: float = 0.0
    duration_s: float = 0.0
    sample_rate: int = 0
    is_final: bool = False
    report: dict[str, Any] | None = field(default=None)
    guidance_changes: tuple[GuidanceChange, ...] = ()
    codes: NDArray[np.int32] | None = None
    session: str = ""
    pauses: tuple[tuple[float, ...], ...] = ()
    begun: tuple[Word, ...] = ()
    transcribed_s: float | None = None
    passages: tuple[Passage, ...] = ()
    marker: str = ""
    speed: float = 1.0
    redrawn_s: float | None = None

    def without_speech(self) -> "SpeechEvent":
        """Return an event with the same ids and time, which is not final and has no speech, text or report."""
        return SpeechEvent(
            None, self.utterance, self.index, self.segment, start_s=self.start_s, sample_rate=self.sample_rate
        )


def read_event(result: InferResult, ring: Ring | None = None) -> SpeechEvent | None:
    """Return the event of a response; None if the response has only the final flag."""
    contents = _contents(result)
    if "event" not in contents:
        return None
    record = json.loads(contents["event"][STRING_HEAD:])
    return SpeechEvent(
        pcm=_samples(contents, record, ring),
        utterance=record["utterance"],
        index=record["index"],
        segment=record["segment"],
        text=record["text"],
        words=tuple(map(Word.from_record, record["words"])),
        start_s=record["start_s"],
        duration_s=record["duration_s"],
        sample_rate=record["sample_rate"],
        is_final=record["is_final"],
        report=record.get("report"),  # only in the last chunk
        guidance_changes=tuple(GuidanceChange(**change) for change in record["guidance_changes"]),
        codes=np.array(record["codes"], np.int32) if "codes" in record else None,
        session=record.get("session", ""),
        pauses=tuple(map(tuple, record.get("pauses", ()))),
        begun=tuple(map(Word.from_record, record.get("begun", ()))),
        transcribed_s=record.get("transcribed_s"),
        passages=tuple(Passage(**passage) for passage in record.get("passages", ())),
        marker=record.get("marker", ""),
    )


def _contents(result: InferResult) -> dict[str, bytes]:
    """Map each tensor's name to its bytes. `as_numpy` would be slower, because it also converts strings."""
    response = result.get_response()
    return {output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)}


def _samples(contents: dict[str, bytes], record: dict[str, Any], ring: Ring | None) -> NDArray[Any] | None:
    if ring is not None and "ring" in record:
        return ring.read_samples(record["ring"])
    return next((np.frombuffer(contents[name], dtype) for name, dtype in SAMPLES.items() if name in contents), None)


def is_last(result: InferResult) -> bool:
    """Return True if a response has the final flag, which comes with the last event or on its own."""
    parameters = result.get_response().parameters
    return "triton_final_response" in parameters and parameters["triton_final_response"].bool_param


def strings(**values: str | bytes | None) -> list[InferInput]:
    """Return a STRING [1] tensor, named after the keyword, for each value that is not None."""
    return [
        _tensor(name, np.array([value], np.object_), "BYTES") for name, value in values.items() if value is not None
    ]


def audio_inputs(*audio: Audio, sharing: Sharing | None = None) -> list[InferInput]:
    """Return the tensors of audio inputs, in shared memory (`sharing`) if given; raise ValueError for other samples.

    Args:
        audio: Paths or contents of files; at most one entry may be (samples [n] in [-1, 1], rate in Hz) instead.
    """
    sampled = [item for item in audio if isinstance(item, tuple)]
    tensors = _files("audio", [item for item in audio if not isinstance(item, tuple)], sharing)
    if len(sampled) > 1:
        raise ValueError(f"expected files and at most one array of samples, got {len(sampled)} arrays")
    for pcm, sample_rate in sampled:
        if pcm.ndim != 1 or not np.issubdtype(pcm.dtype, np.floating):
            raise ValueError(f"expected mono floating-point samples [n], got {pcm.shape} {pcm.dtype}")
        rate = _tensor("sample_rate", np.array([sample_rate], np.int32), "INT32")
        tensors += [_tensor("pcm_in", pcm.astype(np.float32), "FP32", sharing), rate]
    return tensors


def image_inputs(images: Sequence[str | Path | bytes], sharing: Sharing | None = None) -> list[InferInput]:
    """Return the tensor of image files, given by their paths or contents; none if there are no images."""
    return _files("image", images, sharing)


def _files(name: str, files: Sequence[str | Path | bytes], sharing: Sharing | None) -> list[InferInput]:
    read = [file if isinstance(file, bytes) else Path(file).read_bytes() for file in files]
    return [_tensor(name, np.array(read, np.object_), "BYTES", sharing)] if read else []


def given(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {key: value for key, value in options.items() if value is not None}


def options_json(options: Mapping[str, object]) -> str | None:
    """Return the options that are not None as JSON; None if there are none."""
    return json.dumps(given(options)) if given(options) else None


def _tensor(name: str, array: NDArray[Any], dtype: str, sharing: Sharing | None = None) -> InferInput:
    tensor = InferInput(name, list(array.shape), dtype)
    if sharing is None:
        tensor.set_data_from_numpy(array)
        return tensor
    # Triton's string format: length in 4 bytes, then the string.
    content = b"".join(struct.pack("<I", len(item)) + item for item in array) if dtype == "BYTES" else array.tobytes()
    data = np.frombuffer(content, np.uint8)
    region = sharing.region(len(data))
    region.write(data)
    tensor.set_shared_memory(region.name, len(data))
    return tensor


class Owner(Protocol):
    """Client that created a stream."""

    server: str
    timeouts: Timeouts

    def release(self, sharing: Sharing) -> None: ...


class SpeechStream:
    """Events of one utterance, in order.

    `cancel`, `aclose`, the end of `async with` and deletion of the object cancel the utterance. If it fails, the
    iteration raises a ClientError.
    """

    def __init__(self, responses: Any, client: Owner, sharing: Sharing | None = None, timeouts: Timeouts | None = None):
        self._responses = responses
        self._client = client
        self._sharing = sharing
        self._timeouts = timeouts or client.timeouts
        self._server = client.server
        self._started_s = time.monotonic()
        self._is_first = True
        self._is_complete = False  # the last event has been read
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
        """Cancel the utterance here and on the server; a pending or later read raises RequestCancelled."""
        self._responses.cancel()

    async def aclose(self) -> None:
        """Cancel the utterance and end the iteration."""
        self._is_complete = True
        self.cancel()
        self._end()

    def __del__(self) -> None:
        # The reader has left the loop with `break` and the stream was deleted, so cancel the request.
        if not self._is_over:
            self.cancel()
            self._end()

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._sharing is not None:
                self._client.release(self._sharing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _next_response(self) -> InferResult | None:
        """Return the next response; None at the end of the stream."""
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
        """Return the maximum wait for the next response in seconds, and the message for a timeout."""
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


def system_turn(text: str, audio: Audio | None) -> dict[str, Any]:
    """Return a system turn with `text`, unless it is empty, and with `audio`, unless it is None."""
    turn = {"role": "system"} | ({"text": text} if text else {})
    return turn if audio is None else turn | {"audio": "pcm_in" if isinstance(audio, tuple) else "audio"}


@dataclass(frozen=True, slots=True)
class Earlier:
    """Earlier speech that a request continues.

    The request's events have codes, so that the next request can continue it.

    Attributes:
        role: Role of the turn to speak.
        turns: Turns before it, in the form of `messages`; empty for the first clause.
    """

    task: str
    role: str
    turns: tuple[dict[str, Any], ...]


class SpeakOptions(SpeechOptions, total=False):
    """Options of a speech request: the server's options, and a voice that may also be a recording."""

    voice: str | RecordedVoice | None


class SpeakArguments(SpeakOptions, total=False):
    """Arguments of `SpeechClient.speak` except the text."""

    task: str
    encoding: Encoding | None
    sample_rate: int | None
    markup: Markup
    rates: bool
    check: Check
    attempts: int
    hold_s: float
    check_with: str | None
    join: Join
    voices: MarkedVoices | None
    redraws: Sequence[Sequence[int]] | None


class TaskOptions(OptionsRecord, total=False):
    """Arguments of `SpeechClient.transcribe` and `SpeechClient.converse` except the input."""

    task: str


class TranscriptionOptions(TaskOptions, total=False):
    """Arguments of `SpeechClient.transcribe` except the recording.

    Attributes:
        task: Name of the model's task, such as `understand`; `asr` by default.
        system: Text of a system turn, such as names in the recording, if the task accepts one.
    """

    system: str


def transcription_inputs(
    audio: Audio | None, options: TranscriptionOptions, sharing: Sharing | None = None
) -> list[InferInput]:
    """Return the inputs of a request that transcribes a recording, or opens a live session if there is none."""
    system = options.get("system", "")
    turns = [system_turn(system, None)] if system else []
    if turns and audio is not None:
        turns.append({"role": "user", "audio": "pcm_in" if isinstance(audio, tuple) else "audio"})
    others: dict[str, Any] = {name: value for name, value in options.items() if name not in ("task", "system")}
    if audio is None:
        others["live"] = True
    texts = strings(
        task=options.get("task", "asr"),
        messages=json.dumps(turns) if turns else None,
        options=options_json(others),
    )
    return texts if audio is None else [*audio_inputs(audio, sharing=sharing), *texts]


def with_seed(options: SpeakOptions) -> SpeakOptions:
    """Return the options with a random 32-bit seed if they have none, so that several requests can share the seed."""
    return options if options.get("seed") is not None else {**options, "seed": secrets.randbits(32)}


def speech_inputs(
    text: str, task: str, options: SpeakOptions, sharing: Sharing | None, earlier: Earlier | None = None
) -> list[InferInput]:
    """Return the input tensors of a speech request; the task of `earlier`, the speech to continue, replaces `task`."""
    voice = options.get("voice")
    is_recorded = isinstance(voice, RecordedVoice)
    if not (is_recorded or (earlier is not None and earlier.turns)):
        return strings(text=text, task=task, options=options_json(options))
    earlier = earlier or Earlier(task, "user", ())
    turns = [*earlier.turns, {"role": earlier.role, "text": text}]
    recording = list[InferInput]()
    if isinstance(voice, RecordedVoice):
        turns.insert(0, system_turn(voice.text, voice.audio))
        recording = audio_inputs(voice.audio, sharing=sharing)
    others = {name: value for name, value in options.items() if not (is_recorded and name == "voice")}
    inputs = strings(messages=json.dumps(turns), task=earlier.task, options=options_json(others))
    return [*recording, *inputs]


CODES = ".npy"


class Conversation:
    """Turns for `SpeechClient.converse`; `audio` contains the files to which the turns refer.

    The instruction and the recorded voice for the replies become a system turn.
    """

    def __init__(self, instruction: str | None = None, voice: Path | None = None):
        self.turns: list[dict[str, Any]] = []
        self.audio: list[Audio] = []
        if instruction is not None or voice is not None:
            self._add("system", voice, instruction)

    def add_user(self, text: str | None, file: Path | None = None) -> None:
        """Add a user turn with a text and a file: audio, or codes [S, T] in .npy (ValueError if they are invalid)."""
        self._add("user", file, text)

    def add_reply(self, text: str, codes: NDArray[np.int32] | None) -> None:
        """Add the reply: its text, and its codes [S, T] if they are known."""
        spoken = {} if codes is None else {"codes": codes.tolist()}
        written = {"text": text} if text else {}
        if spoken or written:
            self.turns.append({"role": "assistant"} | written | spoken)

    def remove_last(self) -> None:
        """Remove the last turn, which has no reply."""
        if "audio" in self.turns.pop():
            self.audio.pop()

    def _add(self, role: str, file: Path | None, text: str | None) -> None:
        audio_fields: dict[str, Any] = {}
        if file is not None and file.suffix == CODES:
            audio_fields = {"codes": _codes(file)}
        elif file is not None:
            self.audio.append(file.read_bytes())
            audio_fields = {"audio": "audio"}
        self.turns.append({"role": role} | audio_fields | ({} if text is None else {"text": text}))


def _codes(file: Path) -> list[list[int]]:
    with file.open("rb") as opened:
        codes: NDArray[Any] = np.lib.format.read_array(opened, allow_pickle=False)  # type: ignore[no-untyped-call]
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"{file}: expected integer codes [S, T], got {codes.shape} {codes.dtype}")
    rows: list[list[int]] = codes.tolist()
    return rows
