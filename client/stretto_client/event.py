"""What one response of the server adds to an utterance."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tritonclient.grpc import InferResult

from stretto_client.ring import Ring

STRING_HEAD = 4  # bytes before a string: its length
SAMPLES = {"pcm": np.float32, "pcm16": np.int16}


@dataclass(frozen=True, slots=True)
class Word:
    """A word and the second of the utterance at which it starts."""

    word: str
    start_s: float


@dataclass(frozen=True, slots=True)
class GuidanceChange:
    """The second of the utterance from which on frames are drawn with or without guidance."""

    start_s: float
    is_guided: bool


@dataclass(frozen=True, slots=True)
class SpeechEvent:
    """A chunk of an utterance.

    pcm: [n] mono samples at `sample_rate` Hz, float32 in [-1, 1] or, where asked for, int16; None with text alone.
    text: what the text segment has gained. words: the words that start in this chunk.
    guidance_changes: those at its frames; there are none unless the request's guidance policy makes them.
    segment: `text`, `audio` or `tail` (the rows that complete the last frames).
    start_s, duration_s: where `pcm` lies in the utterance.
    report: with the last chunk, the finish reason, counts, seed, guidance and timings.
    codes: [S, T] of all streams, where `output={"codes": True}` asked for them; as `messages` takes them back.
    session: of the first event of a text that is being written, the name by which it goes on.
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
    """The event of a response, its samples from the `ring` if they lie there; None for the final flag alone."""
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
        report=record.get("report"),  # only the last chunk has one
        guidance_changes=tuple(GuidanceChange(**change) for change in record["guidance_changes"]),
        codes=np.array(record["codes"], np.int32) if "codes" in record else None,
        session=record.get("session", ""),
    )


def _contents(result: InferResult) -> dict[str, bytes]:
    """The bytes of each tensor: `as_numpy` would make arrays of all, strings too, which takes a while."""
    response = result.get_response()
    return {output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)}


def _samples(contents: dict[str, bytes], record: dict[str, Any], ring: Ring | None) -> np.ndarray | None:
    if ring is not None and "ring" in record:
        return ring.take(record["ring"])
    return next((np.frombuffer(contents[name], dtype) for name, dtype in SAMPLES.items() if name in contents), None)


def is_last(result: InferResult) -> bool:
    """Whether a response carries the final flag: it may ride on the last chunk or come alone."""
    parameters = result.get_response().parameters
    return "triton_final_response" in parameters and parameters["triton_final_response"].bool_param
