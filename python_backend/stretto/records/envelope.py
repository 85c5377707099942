"""Record that accompanies the codes of a chunk: utterance, flow slot and chunk."""

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
    """Address of an utterance's flow slot; `generation` distinguishes successive users of the slot."""

    table: Annotated[str, Field(pattern=f"^{TABLE}$")]
    slot: Annotated[int, Field(ge=1, lt=1 << 31)]
    generation: Annotated[int, Field(ge=1, le=MAX_GENERATION)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A chunk of `utterance`, or, without one, a probe, which the decoder answers without a response to the client.

    Attributes:
        form: Output format of the whole utterance, in its first chunk.
        receipt: Number of an accepted part of streamed text; it travels alone, to the sender of the part.
    """

    utterance: Annotated[str, Field(min_length=1, max_length=64)]
    flow: FlowAddress
    chunk: Chunk | None
    form: OutputForm | None = None
    receipt: int | None = None

    def to_json(self) -> bytes:
        """Return this envelope as JSON."""
        return _JSON.write(self)

    @classmethod
    def from_json(cls, field: str, text: bytes) -> "Envelope":
        """Return the envelope in `text`; raise InvalidRequest naming `field` if it is invalid."""
        return _JSON.read(field, text)


_JSON: JsonRecord[Envelope] = JsonRecord(Envelope)
