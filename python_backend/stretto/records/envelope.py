"""What travels with the codes of a chunk: whose it is, where its flow slot is, and the chunk's record."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from stretto.records.chunk import Chunk
from stretto.records.delivery import OutputForm
from stretto.records.json_record import JsonRecord

TABLE = r"stretto_flow_[0-9]{1,10}_[0-9a-f]{32}"
MAX_GENERATION = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class FlowAddress:
    """Where the slot of an utterance is; `generation` tells it from the slot's earlier and later tenants."""

    table: Annotated[str, Field(pattern=f"^{TABLE}$")]
    slot: Annotated[int, Field(ge=1, lt=1 << 31)]
    generation: Annotated[int, Field(ge=1, le=MAX_GENERATION)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A chunk of `utterance`, or without one a probe: the decoder answers it to nobody, but sees a cancellation.

    form: of the samples of the whole utterance, told with its first chunk. receipt: the number of a part of its text
    that was taken; it travels alone, to who has sent the part.
    """

    utterance: Annotated[str, Field(min_length=1, max_length=64)]
    flow: FlowAddress
    chunk: Chunk | None
    form: OutputForm | None = None
    receipt: int | None = None

    def to_json(self) -> bytes:
        """This envelope as JSON."""
        return _JSON.write(self)

    @classmethod
    def from_json(cls, field: str, text: bytes) -> "Envelope":
        """The inverse of `to_json`; InvalidRequest, naming `field`, for anything else."""
        return _JSON.read(field, text)


_JSON: JsonRecord[Envelope] = JsonRecord(Envelope)
