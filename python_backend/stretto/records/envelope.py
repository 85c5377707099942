"""What travels with the codes of a chunk: whose it is, where its flow slot is, and the chunk's record."""

from dataclasses import asdict, dataclass, field
from typing import Any

from stretto.records.chunk import Chunk
from stretto.records.delivery import OutputForm


@dataclass(frozen=True, slots=True)
class FlowAddress:
    """Where the slot of an utterance is; `generation` tells it from the slot's earlier and later tenants."""

    table: str
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Envelope:
    """A chunk of `utterance`, or without one a probe: the decoder answers it to nobody, but sees a cancellation."""

    utterance: str
    flow: FlowAddress
    chunk: Chunk | None
    form: OutputForm = field(default_factory=OutputForm)

    def to_record(self) -> dict[str, Any]:
        """This envelope as plain data, ready for JSON."""
        chunk = None if self.chunk is None else self.chunk.to_record()
        return {
            "utterance": self.utterance,
            "flow": asdict(self.flow),
            "probe": self.chunk is None,
            "chunk": chunk,
            "form": asdict(self.form),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Envelope":
        """The inverse of `to_record`."""
        chunk = None if record["probe"] else Chunk.from_record(record["chunk"])
        return cls(record["utterance"], FlowAddress(**record["flow"]), chunk, OutputForm.from_record(record["form"]))
