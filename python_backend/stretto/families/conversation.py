"""Conversations: the JSON turns of a request, the task that answers them, and the pieces of a prompt."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, NotRequired, get_args

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from stretto.errors import InvalidRequest, shown
from stretto.families.base import Family, Role, Task
from stretto.records.json_record import JsonRecord, read_json

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
    """JSON form of a turn."""

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
        path: JSON path of the turn in the request; empty if the request has no JSON turns.
    """

    role: Role = "user"
    text: str | None = None
    audio_input: str | None = None
    codes: np.ndarray | None = field(default=None, compare=False)
    path: str = field(default="", compare=False)

    @property
    def kinds(self) -> tuple[str, ...]:
        """`text`, `audio`, or both, in prompt order."""
        held = ("audio",) * (self.audio_input is not None or self.codes is not None)
        text = ("text",) * (self.text is not None)
        return text + held if self.role == "assistant" else held + text

    def where(self, kind: str) -> str:
        """Return the name of the turn's text or audio for error messages."""
        if self.path:
            return f"{self.path}.{'codes' if kind == 'audio' and self.codes is not None else kind}"
        return kind if kind == "text" else self.audio_input or kind


def read_messages(text: str) -> tuple[Turn, ...]:
    """Parse JSON to one or more turns; raise InvalidRequest if it is invalid."""
    read_json("messages", text, MAX_BYTES)
    records = _JSON.read("messages", text.encode(errors="surrogatepass"))
    turns = tuple(_turn(record, f"messages[{index}]") for index, record in enumerate(records))
    _check_inputs(turns)
    for turn in turns[1:]:
        if turn.role == "system":
            raise InvalidRequest(
                f"{turn.path}.role", "user or assistant (only the first turn can be a system turn)", "'system'"
            )
    return turns


def _check_inputs(turns: tuple[Turn, ...]) -> None:
    sampled = [turn for turn in turns if turn.audio_input == "pcm_in"]
    if len(sampled) > 1:
        expected = "'pcm_in' in one turn only, and 'audio' in the others"
        raise InvalidRequest(sampled[1].where("audio"), expected, "a second 'pcm_in'")


def _turn(record: TurnRecord, path: str) -> Turn:
    if len(record) < 2 or ("audio" in record and "codes" in record):
        raise InvalidRequest(path, "role, and at least one of text and audio (or codes)", shown(sorted(record)))
    codes = None if "codes" not in record else _codes(record["codes"], f"{path}.codes")
    return Turn(record["role"], record.get("text"), record.get("audio"), codes, path)


def _codes(streams: list[list[int]], path: str) -> np.ndarray:
    """Return S lists of T codes as int64 [S, T]; their values are checked later by the family."""
    lengths = [len(stream) for stream in streams]
    if len(set(lengths)) > 1:
        raise InvalidRequest(path, "equally many codes for each stream", shown(lengths))
    return np.array(streams, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One text or one recording of a conversation.

    Attributes:
        role: Role of the speaker.
        path: Name of the piece in error messages.
        text: The text, or None.
        pcm: Mono samples, float32 [n] at the sample rate of the audio encoder, or None.
        codes: Audio as codes, [S, T], or None.
    """

    role: Role
    path: str
    text: str | None = None
    pcm: np.ndarray | None = None
    codes: np.ndarray | None = None


def choose_task(name: str | None, turns: tuple[Turn, ...], family: Family) -> Task:
    """Return the named task; without a name, the family's first task that accepts `turns`.

    Args:
        name: Name of a task, or None.
        turns: The conversation.
        family: The model's family.

    Raises:
        InvalidRequest: No such task accepts the turns. The message is about the first task that accepts turns of these
            roles, or otherwise about the first task.
    """
    named = [task for task in family.tasks if name in (None, task.name)]
    if not named:
        raise InvalidRequest("task", f"one of {', '.join(task.name for task in family.tasks)}", shown(name))
    refusals = []
    for task in named:
        try:
            check(turns, task)
            return task
        except InvalidRequest as refusal:
            refusals.append(refusal)
    raise min(refusals, key=lambda refusal: refusal.field.endswith(".role"))


def check(turns: tuple[Turn, ...], task: Task) -> None:
    """Raise InvalidRequest unless `task` accepts the conversation."""
    spoken = turns
    if turns[0].role == "system" and task.system:
        _check_kinds(turns[0], set(turns[0].kinds), (), task.system, task)
        spoken = turns[1:]
    last = turns[-1]
    if last.role != task.answers:
        expected = f"{task.answers!r} in the last turn for task {task.name!r}"
        raise InvalidRequest(f"{last.path}.role" if last.path else "messages", expected, repr(last.role))
    roles = ("user", "assistant") if task.has_history else (task.answers,)
    for turn in spoken:
        if turn.role not in roles:
            expected = " or ".join(map(repr, roles))
            raise InvalidRequest(f"{turn.path}.role", f"{expected} for task {task.name!r}", repr(turn.role))
    _check_answered(spoken, task)


def _check_answered(spoken: tuple[Turn, ...], task: Task) -> None:
    """Check the input of `task`: the last turns of the role that it answers."""
    first = len(spoken)
    while first and spoken[first - 1].role == task.answers:
        first -= 1
    kinds = [kind for turn in spoken[first:] for kind in turn.kinds]
    if not task.has_history and len(set(kinds)) < len(kinds):
        expected = f"at most one text and one audio for task {task.name!r}"
        raise InvalidRequest(spoken[-1].path, expected, " and ".join(kinds))
    _check_kinds(spoken[-1], set(kinds), task.needs, task.also, task)


def _check_kinds(turn: Turn, kinds: set[str], needs: tuple[str, ...], also: tuple[str, ...], task: Task) -> None:
    got = " and ".join(sorted(kinds))
    missing = [kind for kind in needs if kind not in kinds]
    if missing:
        raise InvalidRequest(turn.path or missing[0], f"{' and '.join(needs)} for task {task.name!r}", got)
    excess = sorted(kinds - {*needs, *also})
    if excess:
        expected = f"only {' and '.join(needs or also)} for task {task.name!r}"
        raise InvalidRequest(turn.path or turn.where(excess[0]), expected, got)
