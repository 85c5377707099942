"""How a client wants its waveform: in which form, and in chunks of what size."""

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
    """Mono samples: 32-bit floating point in [-1, 1] or 16-bit integers, at `sample_rate` Hz (None: the codec's).

    ring: where they go in place of the response, for a client on this host. deterministic: they are decoded in no
    batch with others, so that not a bit of them depends on who else speaks.
    """

    encoding: Encoding = "pcm_f32le"
    sample_rate: SampleRate | None = None
    ring: RingAddress | None = None
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """Output form and chunk sizes of one utterance. with_codes: tell the codes of all streams beside the waveform."""

    form: OutputForm = field(default_factory=OutputForm)
    chunking: ChunkPolicy = field(default_factory=ChunkPolicy)
    with_codes: bool = False
