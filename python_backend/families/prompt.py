"""What the preprocessor hands to the language model."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from python_backend.sampling.params import SamplingConfig, SegmentSampling
from python_backend.streams.delivery import Delivery


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of P rows and how to continue it.

    rows: [P, S] int32, absolute token ids of every input stream (input-only streams last), delays applied.
    words: the words of the text to be spoken, in order, for word times; empty where there are none.
    delivery: how the client wants the waveform.
    """

    task: str
    rows: np.ndarray
    sampling: SamplingConfig
    words: tuple[str, ...] = ()
    delivery: Delivery = field(default_factory=Delivery)

    def to_record(self) -> dict[str, Any]:
        """Everything but `rows`, as plain data ready for JSON."""
        return {
            "task": self.task,
            "sampling": asdict(self.sampling),
            "words": list(self.words),
            "delivery": self.delivery.to_record(),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], rows: np.ndarray) -> "Prompt":
        """The inverse of `to_record`, with the rows that travelled beside it."""
        sampling = dict(record["sampling"])
        for segment in ("text", "audio"):
            sampling[segment] = SegmentSampling(**sampling[segment])
        delivery = Delivery.from_record(record["delivery"])
        return cls(record["task"], rows, SamplingConfig(**sampling), tuple(record["words"]), delivery)
