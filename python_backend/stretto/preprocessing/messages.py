"""The `messages` of a request: a conversation as JSON turns. It knows no family and no task.

    [{"role": "system", "text": "You are terse."},
     {"role": "user", "audio": "pcm_in", "text": "What is this?"},     the input tensor that carries the audio;
                                                                       of several files in `audio` the next
     {"role": "assistant", "text": "Rain."},
     {"role": "user", "codes": [[3, 17, …], …]}]                       [K][T]: audio as codes, one list per stream

A turn holds text, audio (from an input tensor or as codes), or both. A listener hears before it reads, an assistant
writes before it speaks: so a turn's audio comes before its text, an assistant's after it.
"""

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

from stretto.errors import InvalidRequest
from stretto.families.base import Role
from stretto.preprocessing.json_field import read_json, shown

AUDIO_INPUTS = ("audio", "pcm_in")
CONTENTS = ("text", "audio", "codes")
ROLES = get_args(Role)
MAX_BYTES = 1 << 20  # half a minute of codes takes 80 kB
MAX_TURNS = 64
MAX_STREAMS = 32
MAX_CODE = 1 << 20


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says: text, audio, or both.

    audio_input: the input tensor that carries the audio. codes: [K, T], where it comes as codes instead.
    path: where the turn stands in the request; "" where the inputs themselves are the turn.
    """

    role: Role = "user"
    text: str | None = None
    audio_input: str | None = None
    codes: np.ndarray | None = field(default=None, compare=False)
    path: str = field(default="", compare=False)

    @property
    def kinds(self) -> tuple[str, ...]:
        """`text`, `audio`, or both, in the order in which they are said."""
        held = ("audio",) * (self.audio_input is not None or self.codes is not None)
        text = ("text",) * (self.text is not None)
        return text + held if self.role == "assistant" else held + text

    def where(self, kind: str) -> str:
        """What to call the turn's text or audio in a refusal."""
        if self.path:
            return f"{self.path}.{'codes' if kind == 'audio' and self.codes is not None else kind}"
        return kind if kind == "text" else self.audio_input or kind


def read_messages(text: str) -> tuple[Turn, ...]:
    """The turns of `text`, at least one; InvalidRequest names what is wrong with which."""
    records = read_json("messages", text, MAX_BYTES)
    if not isinstance(records, list):
        raise InvalidRequest("messages", "a JSON list of turns", shown(records))
    if not 1 <= len(records) <= MAX_TURNS:
        raise InvalidRequest("messages", f"1 to {MAX_TURNS} turns", f"{len(records)} turns")
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


def _turn(record: Any, path: str) -> Turn:
    if not isinstance(record, dict):
        raise InvalidRequest(path, "a JSON object with role and text or audio", shown(record))
    role: Any = record.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{path}.role", f"one of {', '.join(ROLES)}", shown(role))
    content = record.keys() - {"role"}
    if not content or content - set(CONTENTS) or content >= {"audio", "codes"}:
        raise InvalidRequest(path, "role, and text, audio (or codes) or both", shown(sorted(record)))
    text, audio = record.get("text"), record.get("audio")
    if "text" in content and not isinstance(text, str):
        raise InvalidRequest(f"{path}.text", "a string", shown(text))
    if "audio" in content and audio not in AUDIO_INPUTS:
        raise InvalidRequest(f"{path}.audio", f"one of {', '.join(AUDIO_INPUTS)}", shown(audio))
    codes = _codes(record["codes"], f"{path}.codes") if "codes" in content else None
    return Turn(role, text, audio, codes, path)


def _codes(value: Any, path: str) -> np.ndarray:
    """[K, T] int64 of K lists of T codes; what a code may be is the family's to say."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_STREAMS or not all(isinstance(v, list) for v in value):
        raise InvalidRequest(path, f"1 to {MAX_STREAMS} lists of codes, one for each stream", shown(value))
    lengths = {len(stream) for stream in value}
    if len(lengths) > 1 or 0 in lengths:
        raise InvalidRequest(path, "as many codes for each stream, at least one", shown([len(each) for each in value]))
    for index, stream in enumerate(value):
        wrong = [code for code in stream if type(code) is not int or not 0 <= code <= MAX_CODE]
        if wrong:
            raise InvalidRequest(f"{path}[{index}]", f"integers in [0, {MAX_CODE}]", shown(wrong[0]))
    return np.array(value, np.int64)
