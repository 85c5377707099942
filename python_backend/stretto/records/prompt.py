"""What the preprocessor hands to the language model."""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from stretto.errors import InvalidRequest
from stretto.records.delivery import Delivery
from stretto.records.json_record import JsonRecord
from stretto.records.sampling import SamplingConfig

Int32 = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]


@dataclass(frozen=True, slots=True)
class HeardAudio:
    """Audio that a model hears through an encoder of its own: it stands in the place of placeholder rows of a prompt.

    first_row, num_rows: those rows. features: [F, M] float32, what the encoder reads: F frames of M mel bins; of a
    voice that is cloned its x-vector, [1, H].
    """

    first_row: int
    num_rows: int
    features: np.ndarray


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of P rows and how to continue it.

    rows: [P, S] int32, absolute token ids of every input stream (input-only streams last), delays applied.
    words: the words of the text to be spoken, in order, for word times; empty where there are none.
    delivery: how the client wants the waveform. audios: those heard through an encoder, in order.
    delayed_tail: where the reply goes on with the audio of the prompt, int32 [n, S - 1]: what the streams 1 … carry in
    its first n rows until each reaches its first new frame.
    track: of a family with a text track, its ids for the first rows of the reply, the end of the text among them.
    is_open: whether the text goes on while it is spoken; its end is not among them then.
    opening: what of an open text came with the request, none of it in `track` yet. Its first token is still to be put
    beside the codes of the last row.
    num_reference_rows: how many of the last rows are the frames of a reference, one each, from which the sound of the
    reply goes on: of a voice that is cloned.
    adapter: by what name the server knows the LoRA adapter that the reply is made with; None for the model as it is.
    voice: which of the codec's voices the reply is heard in; 0 of a codec without any.
    """

    task: str
    rows: np.ndarray
    sampling: SamplingConfig
    words: tuple[str, ...] = ()
    delivery: Delivery = field(default_factory=Delivery)
    audios: tuple[HeardAudio, ...] = ()
    delayed_tail: np.ndarray | None = None
    track: tuple[int, ...] = ()
    is_open: bool = False
    num_reference_rows: int = 0
    opening: str = ""
    adapter: str | None = None
    voice: int = 0

    @property
    def features(self) -> np.ndarray | None:
        """The features of all `audios`, one after another, [sum of F, M]; None without any."""
        return np.concatenate([audio.features for audio in self.audios]) if self.audios else None

    def to_json(self) -> bytes:
        """Everything but `rows` and `features`, as JSON."""
        spans = tuple(AudioSpan(audio.first_row, audio.num_rows, len(audio.features)) for audio in self.audios)
        delayed_tail = None if self.delayed_tail is None else self.delayed_tail.tolist()
        said = (self.task, self.sampling, self.delivery, self.words, spans, delayed_tail, self.track, self.is_open)
        return _JSON.write(PromptRecord(*said, self.num_reference_rows, self.opening, self.adapter, self.voice))

    @classmethod
    def from_json(cls, field: str, text: bytes, rows: np.ndarray, features: np.ndarray | None = None) -> "Prompt":
        """The inverse of `to_json`, with the rows and the features that travelled beside it.

        InvalidRequest, naming `field`, where the text is none of a prompt with those features.
        """
        record = _JSON.read(field, text)
        return cls(
            task=record.task,
            rows=rows,
            sampling=record.sampling,
            words=record.words,
            delivery=record.delivery,
            audios=_audios(field, record.audios, features),
            delayed_tail=None if record.delayed_tail is None else _delayed_tail(field, record.delayed_tail, rows),
            track=record.track,
            is_open=record.is_open,
            num_reference_rows=record.num_reference_rows,
            opening=record.opening,
            adapter=record.adapter,
            voice=record.voice,
        )


@dataclass(frozen=True, slots=True)
class AudioSpan:
    """A HeardAudio without its features: the rows in whose place it is heard, and how many frames it has."""

    first_row: Annotated[int, Field(ge=0)]
    num_rows: Annotated[int, Field(ge=1)]
    num_frames: Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A Prompt without its arrays. delayed_tail: as lists."""

    task: str
    sampling: SamplingConfig
    delivery: Delivery
    words: tuple[str, ...]
    audios: tuple[AudioSpan, ...]
    delayed_tail: list[list[Int32]] | None
    track: tuple[Int32, ...]
    is_open: bool
    num_reference_rows: Annotated[int, Field(ge=0)]
    opening: str
    adapter: str | None
    voice: Annotated[int, Field(ge=0)]


_JSON: JsonRecord[PromptRecord] = JsonRecord(PromptRecord)


def _delayed_tail(field: str, lists: list[list[int]], rows: np.ndarray) -> np.ndarray:
    width = rows.shape[1] - 1
    if any(len(each) != width for each in lists):
        raise InvalidRequest(f"{field}.delayed_tail", f"rows of {width} ids", "others")
    return np.array(lists, np.int32).reshape(-1, width)


def _audios(field: str, spans: tuple[AudioSpan, ...], features: np.ndarray | None) -> tuple[HeardAudio, ...]:
    num_frames, there = sum(span.num_frames for span in spans), 0 if features is None else len(features)
    if num_frames != there:
        raise InvalidRequest(f"{field}.audios", f"spans of all {there} frames of the features", f"{num_frames} frames")
    if features is None:
        return ()
    ends = np.cumsum([span.num_frames for span in spans])
    parts = np.split(features, ends[:-1])
    return tuple(HeardAudio(span.first_row, span.num_rows, part) for span, part in zip(spans, parts, strict=True))
