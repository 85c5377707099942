"""The `messages` of a request: a conversation as JSON turns. Independent of families and tasks.

    [{"role": "system", "text": "You are terse."},
     {"role": "user", "audio": "pcm_in", "text": "What is this?"},     the input tensor that carries the audio;
                                                                       of several files in `audio` the next
     {"role": "assistant", "text": "Rain."},
     {"role": "user", "codes": [[3, 17, …], …]}]                       [K][T]: audio as codes, one list per stream

A turn has text, audio (from an input tensor or as codes), or both. The audio of a user's turn precedes its text in the
prompt; an assistant's audio follows its text.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NotRequired, get_args

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from stretto.errors import InvalidRequest, shown
from stretto.families.base import Role
from stretto.preprocessing.json_field import read_json
from stretto.records.json_record import JsonRecord

ROLES = get_args(Role)
MAX_BYTES = 1 << 20  # 30 s of codes take 80 kB
MAX_TURNS = 64
MAX_STREAMS = 32
MAX_CODE = 1 << 20

Code = Annotated[int, Field(ge=0, le=MAX_CODE, description=f"an integer in [0, {MAX_CODE}]")]
Codes = Annotated[list[Code], Field(min_length=1, fail_fast=True, description="a list of at least one code")]
Streams = Annotated[
    list[Codes],
    Field(min_length=1, max_length=MAX_STREAMS, description=f"1 to {MAX_STREAMS} lists of codes, one for each stream"),
]


class TurnRecord(TypedDict):
    """A turn in the request's JSON."""

    role: Annotated[Role, Field(description=f"one of {', '.join(ROLES)}")]
    text: NotRequired[Annotated[str, Field(description="a string")]]
    audio: NotRequired[Annotated[Literal["audio", "pcm_in"], Field(description="one of audio, pcm_in")]]
    codes: NotRequired[Streams]


_JSON: JsonRecord[list[TurnRecord]] = JsonRecord(
    Annotated[
        list[Annotated[TurnRecord, Field(description="a JSON object with role and text or audio")]],
        Field(min_length=1, max_length=MAX_TURNS, description=f"a JSON list of 1 to {MAX_TURNS} turns"),
    ]
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation: text, audio, or both.

    Attributes:
        role: Role of the speaker.
        text: Text, or None.
        audio_input: Name of the input tensor with the audio, or None.
        codes: Audio as codes, int64 [S, T], or None.
        path: JSON path of the turn in the request; empty if the turn consists of the other inputs.
    """

    role: Role = "user"
    text: str | None = None
    audio_input: str | None = None
    codes: np.ndarray | None = field(default=None, compare=False)
    path: str = field(default="", compare=False)

    @property
    def kinds(self) -> tuple[str, ...]:
        """`text`, `audio`, or both, in the order in which they appear in the prompt."""
        held = ("audio",) * (self.audio_input is not None or self.codes is not None)
        text = ("text",) * (self.text is not None)
        return text + held if self.role == "assistant" else held + text

    def where(self, kind: str) -> str:
        """Return the name of the turn's text or audio in error messages."""
        if self.path:
            return f"{self.path}.{'codes' if kind == 'audio' and self.codes is not None else kind}"
        return kind if kind == "text" else self.audio_input or kind


def read_messages(text: str) -> tuple[Turn, ...]:
    """Parse `text` to one or more turns; raise InvalidRequest if it is invalid."""
    read_json("messages", text, MAX_BYTES)
    records = _JSON.read("messages", text.encode(errors="surrogatepass"))
    turns = tuple(_turn(record, f"messages[{index}]") for index, record in enumerate(records))
    _check_inputs(turns)
    for turn in turns[1:]:
        if turn.role == "system":
            raise InvalidRequest(f"{turn.path}.role", "user or assistant: a system turn comes first", "'system'")
    return turns


def _check_inputs(turns: tuple[Turn, ...]) -> None:
    sampled = [turn for turn in turns if turn.audio_input == "pcm_in"]
    if len(sampled) > 1:
        expected = "'pcm_in' in one turn, and files, 'audio', in others"
        raise InvalidRequest(sampled[1].where("audio"), expected, "'pcm_in' again")


def _turn(record: TurnRecord, path: str) -> Turn:
    if len(record) < 2 or ("audio" in record and "codes" in record):
        raise InvalidRequest(path, "role, and text, audio (or codes) or both", shown(sorted(record)))
    codes = None if "codes" not in record else _codes(record["codes"], f"{path}.codes")
    return Turn(record["role"], record.get("text"), record.get("audio"), codes, path)


def _codes(streams: list[list[int]], path: str) -> np.ndarray:
    """Return S lists of T codes as int64 [S, T]; families check the values later."""
    lengths = [len(stream) for stream in streams]
    if len(set(lengths)) > 1:
        raise InvalidRequest(path, "as many codes for each stream", shown(lengths))
    return np.array(streams, np.int64)
