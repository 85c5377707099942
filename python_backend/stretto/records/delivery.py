"""How a client wants its waveform: in which form, and in chunks of what size."""

from dataclasses import asdict, dataclass, field
from typing import Any

from stretto.records.ring_address import RingAddress
from stretto.streams.chunking import ChunkPolicy

ENCODINGS = ("pcm_f32le", "pcm_s16le")
LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000


@dataclass(frozen=True, slots=True)
class OutputForm:
    """Mono samples: 32-bit floating point in [-1, 1] or 16-bit integers, at `sample_rate` Hz (None: the codec's).

    ring: where they go in place of the response, for a client on this host.
    """

    encoding: str = ENCODINGS[0]
    sample_rate: int | None = None
    ring: RingAddress | None = None

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}, got {self.encoding!r}")
        if self.sample_rate is not None and not LOWEST_RATE <= self.sample_rate <= HIGHEST_RATE:
            raise ValueError(f"sample_rate must be in [{LOWEST_RATE}, {HIGHEST_RATE}] Hz, got {self.sample_rate}")

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "OutputForm":
        """The inverse of `dataclasses.asdict`."""
        ring = record["ring"]
        return cls(record["encoding"], record["sample_rate"], None if ring is None else RingAddress(**ring))


@dataclass(frozen=True, slots=True)
class Delivery:
    """Both, for one utterance. with_codes: whether the codes of all streams are told beside the waveform."""

    form: OutputForm = field(default_factory=OutputForm)
    chunking: ChunkPolicy = field(default_factory=ChunkPolicy)
    with_codes: bool = False

    def to_record(self) -> dict[str, Any]:
        """This as plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Delivery":
        """The inverse of `to_record`."""
        form = OutputForm.from_record(record["form"])
        return cls(form, ChunkPolicy(**record["chunking"]), record["with_codes"])
