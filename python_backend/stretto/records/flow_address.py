"""Address of an utterance in the acknowledgement table, which the launcher reads, too."""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

TABLE = r"stretto_flow_[0-9]{1,10}_[0-9a-f]{32}"
MAX_GENERATION = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class FlowAddress:
    """Address of an utterance's slot in the acknowledgement table.

    `generation` distinguishes successive users of the slot.
    """

    table: Annotated[str, Meta(pattern=rf"^{TABLE}\Z")]
    slot: Annotated[int, Meta(ge=1, lt=1 << 31)]
    generation: Annotated[int, Meta(ge=1, le=MAX_GENERATION)]
