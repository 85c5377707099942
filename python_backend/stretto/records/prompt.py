"""What the preprocessor hands to the language model."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stretto.records.delivery import Delivery
from stretto.records.sampling import SamplingConfig, SegmentSampling


@dataclass(frozen=True, slots=True)
class HeardAudio:
    """Audio that a model hears through an encoder of its own: it stands in the place of placeholder rows of a prompt.

    first_row, num_rows: those rows. features: [F, M] float32, what the encoder reads: F frames of M mel bins.
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
    """

    task: str
    rows: np.ndarray
    sampling: SamplingConfig
    words: tuple[str, ...] = ()
    delivery: Delivery = field(default_factory=Delivery)
    audios: tuple[HeardAudio, ...] = ()
    delayed_tail: np.ndarray | None = None

    @property
    def features(self) -> np.ndarray | None:
        """The features of all `audios`, one after another, [sum of F, M]; None without any."""
        return np.concatenate([audio.features for audio in self.audios]) if self.audios else None

    def to_record(self) -> dict[str, Any]:
        """Everything but `rows` and `features`, as plain data ready for JSON."""
        return {
            "task": self.task,
            "sampling": asdict(self.sampling),
            "words": list(self.words),
            "delivery": self.delivery.to_record(),
            "delayed_tail": None if self.delayed_tail is None else self.delayed_tail.tolist(),
            "audios": [[audio.first_row, audio.num_rows, len(audio.features)] for audio in self.audios],
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], rows: np.ndarray, features: np.ndarray | None = None) -> "Prompt":
        """The inverse of `to_record`, with the rows and the features that travelled beside it."""
        sampling = dict(record["sampling"])
        for segment in ("text", "audio"):
            sampling[segment] = SegmentSampling(**sampling[segment])
        delivery = Delivery.from_record(record["delivery"])
        return cls(
            task=record["task"],
            rows=rows,
            sampling=SamplingConfig(**sampling),
            words=tuple(record["words"]),
            delivery=delivery,
            audios=_audios(record["audios"], features),
            delayed_tail=None if record["delayed_tail"] is None else np.array(record["delayed_tail"], np.int32),
        )


def _audios(spans: list[list[int]], features: np.ndarray | None) -> tuple[HeardAudio, ...]:
    if features is None:
        assert not spans, "a prompt that hears audio came without its features"
        return ()
    ends = np.cumsum([num_frames for _, _, num_frames in spans])
    parts = np.split(features, ends[:-1])
    return tuple(HeardAudio(first, rows, part) for (first, rows, _), part in zip(spans, parts, strict=True))
