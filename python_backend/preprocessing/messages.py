"""The `messages` of a request: a dialogue as JSON turns. It knows which turns a family can take today: one, the user's.

[{"role": "user", "text": "It is 9:20."}]
[{"role": "user", "audio": "pcm_in"}]       the input tensor that carries the audio: "audio" or "pcm_in"
"""

from dataclasses import dataclass
from typing import Any

from python_backend.errors import InvalidRequest
from python_backend.preprocessing.json_field import read_json, shown

AUDIO_INPUTS = ("audio", "pcm_in")


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says: either `text`, or the name of the input that holds the audio."""

    text: str | None = None
    audio_input: str | None = None


def read_messages(text: str) -> Turn:
    """The one user turn of `text`; InvalidRequest for any other dialogue."""
    turns = read_json("messages", text)
    if not isinstance(turns, list):
        raise InvalidRequest("messages", "a JSON list of turns", shown(turns))
    if len(turns) != 1:
        raise InvalidRequest("messages", "one turn, the user's", f"{len(turns)} turns")
    turn = turns[0]
    if not isinstance(turn, dict):
        raise InvalidRequest("messages[0]", "a JSON object with role and text or audio", shown(turn))
    if turn.get("role") != "user":
        raise InvalidRequest("messages[0].role", "'user'", shown(turn.get("role")))
    return _content(turn)


def _content(turn: dict[str, Any]) -> Turn:
    content = turn.keys() - {"role"}
    if content == {"text"}:
        if not isinstance(turn["text"], str):
            raise InvalidRequest("messages[0].text", "a string", shown(turn["text"]))
        return Turn(text=turn["text"])
    if content == {"audio"}:
        if turn["audio"] not in AUDIO_INPUTS:
            raise InvalidRequest("messages[0].audio", f"one of {', '.join(AUDIO_INPUTS)}", shown(turn["audio"]))
        return Turn(audio_input=turn["audio"])
    raise InvalidRequest("messages[0]", "role and either text or audio", shown(sorted(turn)))
