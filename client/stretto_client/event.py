"""Events of an utterance, read from the server's responses."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tritonclient.grpc import InferResult

from stretto_client.ring import Ring

STRING_HEAD = 4  # length prefix of a string, in bytes
SAMPLES = {"pcm": np.float32, "pcm16": np.int16}


@dataclass(frozen=True, slots=True)
class Word:
    """Word and its start in the utterance, in seconds."""

    word: str
    start_s: float


@dataclass(frozen=True, slots=True)
class GuidanceChange:
    """Time in the utterance, in seconds, from which frames are sampled with or without guidance."""

    start_s: float
    is_guided: bool


@dataclass(frozen=True, slots=True)
class SpeechEvent:
    """Chunk of an utterance.

    Attributes:
        pcm: Mono samples [n], float32 in [-1, 1] or, if requested, int16; None for text alone.
        utterance: Id of the utterance.
        index: Number of the event.
        segment: `text`, `audio` or `tail` (the rows that complete the last frames).
        text: Text generated since the last event.
        words: Words that start in this chunk.
        start_s: Start of `pcm` in the utterance, in seconds.
        duration_s: Duration of `pcm` in seconds.
        sample_rate: Sampling rate of `pcm` in Hz.
        is_final: True for the last chunk.
        report: Finish reason, counts, seed, guidance and timings; only in the last chunk.
        guidance_changes: Changes at the chunk's frames; empty unless the request's guidance policy makes some.
        codes: Codes [S, T] of all streams if `output={"codes": True}`; `messages` accepts them in this form.
        session: Session id for further text; only in the first event of a text that is still being written.
    """

    pcm: np.ndarray | None
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
    codes: np.ndarray | None = None
    session: str = ""


def read_event(result: InferResult, ring: Ring | None = None) -> SpeechEvent | None:
    """Return the event of a response, with samples from the `ring` if it refers to it; None for a final flag alone."""
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
        words=tuple(Word(word["word"], word["start_s"]) for word in record["words"]),
        start_s=record["start_s"],
        duration_s=record["duration_s"],
        sample_rate=record["sample_rate"],
        is_final=record["is_final"],
        report=record.get("report"),  # only in the last chunk
        guidance_changes=tuple(GuidanceChange(**change) for change in record["guidance_changes"]),
        codes=np.array(record["codes"], np.int32) if "codes" in record else None,
        session=record.get("session", ""),
    )


def _contents(result: InferResult) -> dict[str, bytes]:
    """Return the bytes of each tensor; `as_numpy` is slower, because it makes arrays of all, including strings."""
    response = result.get_response()
    return {output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)}


def _samples(contents: dict[str, bytes], record: dict[str, Any], ring: Ring | None) -> np.ndarray | None:
    if ring is not None and "ring" in record:
        return ring.take(record["ring"])
    return next((np.frombuffer(contents[name], dtype) for name, dtype in SAMPLES.items() if name in contents), None)


def is_last(result: InferResult) -> bool:
    """Return True if a response has the final flag, which comes with the last chunk or alone."""
    parameters = result.get_response().parameters
    return "triton_final_response" in parameters and parameters["triton_final_response"].bool_param
