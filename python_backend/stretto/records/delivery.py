"""Output format and chunk sizes requested by a client."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from stretto.records.ring_address import RingAddress
from stretto.streams.chunking import ChunkPolicy

LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000
Encoding = Annotated[
    Literal["pcm_f32le", "pcm_s16le"],
    Field(description="one of pcm_f32le, pcm_s16le"),
]
SampleRate = Annotated[
    int,
    Field(ge=LOWEST_RATE, le=HIGHEST_RATE, description=f"an integer in [{LOWEST_RATE}, {HIGHEST_RATE}]"),
]


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Format of mono samples: float32 in [-1, 1] or int16, at `sample_rate` Hz (None: the codec's).

    Attributes:
        ring: Shared-memory ring that receives the samples instead of the response, for a client on this host.
        deterministic: True to decode without batching, so that no bit depends on other utterances.
    """

    encoding: Encoding = "pcm_f32le"
    sample_rate: SampleRate | None = None
    ring: RingAddress | None = None
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """Output format and chunk sizes of one utterance; `with_codes` adds the codes of all streams to the events."""

    form: OutputForm = field(default_factory=OutputForm)
    chunking: ChunkPolicy = field(default_factory=ChunkPolicy)
    with_codes: bool = False
