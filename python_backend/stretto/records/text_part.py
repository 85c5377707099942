"""Next part of a streamed text, sent from the preprocessor to the language model."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from stretto.records.json_record import JsonRecord

MAX_PART_CHARS = 4096
ID_BYTES = 16  # length of the secret session name in bytes


class SessionRecord(TypedDict):
    """JSON tensor `session`: session of a part, its number from 0, and whether it is the last."""

    id: Annotated[str, Field(min_length=1, max_length=64, description="the session that the reply's first event tells")]
    part: Annotated[int, Field(ge=0, lt=1 << 31, description="an integer in [0, 2^31)")]
    is_last: Annotated[bool, Field(description="true or false")]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Next text of `session`, possibly empty: part number `part`, from 0."""

    session: str
    part: int
    text: str
    is_last: bool

    def to_json(self) -> bytes:
        """Return this part as JSON."""
        return _JSON.write(self)

    @classmethod
    def from_json(cls, field: str, text: bytes) -> "TextPart":
        """Return the part in `text`; raise InvalidRequest naming `field` if it is invalid."""
        return _JSON.read(field, text)


SESSION: JsonRecord[SessionRecord] = JsonRecord(Annotated[SessionRecord, Field(description="a JSON object")])
_JSON: JsonRecord[TextPart] = JsonRecord(TextPart)
