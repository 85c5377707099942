r"""Conversion of VibeVoice-ASR's ids to the text of a transcript, and to its passages with speakers and times.

assistant\n[{"Start":0,"End":3.4,"Speaker":0,"Content":"Good morning."},{"Start":3.4, …  ─►  Good morning. …

Each object of the list is read once it is complete. A text that is not such a list is the transcript itself, as in
transformers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import TextCodec, TextReader, TextTokenizer, subword_codec
from stretto_contract.transcripts import Passage
from stretto_vibevoice.vibevoice_asr.family import MAX_AUDIO_S, AsrVocabulary

ROLE = "assistant"
BETWEEN = "[], \n\r\t"  # characters between the list's objects, which are no text
CUT_ENDS = ('"}', "}", '""}')  # one of which completes an object that a limit has cut


class ObjectScanner:
    """Scanner of a list of JSON objects that is still being written."""

    def __init__(self) -> None:
        self.begun = ""  # of the object that is not complete
        self._depth = 0
        self._is_string = False
        self._is_escaped = False
        self._is_outside = False

    def push(self, text: str) -> Iterator[str]:
        """Append text; yield each JSON object, unparsed, once it is complete, and each character outside objects."""
        for character in text:
            if self._depth or character == "{":
                self._is_outside = False
                self.begun += character
                self._move(character)
                if not self._depth:
                    yield self.pop_begun()
            elif self._is_outside or character not in BETWEEN:
                self._is_outside = True
                yield character

    def pop_begun(self) -> str:
        """Remove and return the object read so far."""
        begun = self.begun
        self.begun = ""
        return begun

    def _move(self, character: str) -> None:
        """Track whether the position after `character` is in a string or an object."""
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = self._is_string
        elif character == '"':
            self._is_string = not self._is_string
        elif not self._is_string:
            self._depth += {"{": 1, "}": -1}.get(character, 0)


class TranscriptReader:
    """Reader that returns the text of passages, and collects the passages themselves."""

    def __init__(self, reader: TextReader):
        self._reader = reader
        self._head: str | None = ""  # text before the list; None after it
        self._is_list = False
        self._scanner = ObjectScanner()
        self._passages: list[Passage] = []
        self._has_text = False
        self._is_apart = False  # True if the next text is separated from the text before it

    def push(self, token_id: int) -> str:
        return self._read(self._reader.push(token_id))

    def end(self) -> str:
        text = self._read(self._reader.end())
        if self._head is not None:
            head = self._head
            self._head = None
            return text + head
        begun = self._scanner.pop_begun()
        return text + (self._cut_object(begun) if begun else "")

    def pop_passages(self) -> list[Passage]:
        """Remove and return the passages that became complete since the last call."""
        passages = self._passages
        self._passages = []
        return passages

    def _read(self, text: str) -> str:
        if self._head is not None:
            head = (self._head + text).lstrip()
            reply = head.removeprefix(ROLE).lstrip()
            if ROLE.startswith(head) or not reply:
                self._head = head
                return ""
            self._head = None
            self._is_list = reply.startswith("[")
            text = reply
        if not self._is_list:
            return text
        return "".join(self._text_of(piece) for piece in self._scanner.push(text))

    def _text_of(self, piece: str) -> str:
        """Return the text of an object, or other text, after a space if needed; store the object's passage."""
        record = parsed(piece)
        content = record.get("Content")
        is_object = piece.startswith("{")
        text = " " * (self._is_apart or (is_object and self._has_text)) + (piece if content is None else content)
        self._is_apart = is_object
        self._has_text = True
        passage = None if content is None else passage_of(record, content)
        if passage is not None:
            self._passages.append(passage)
        return text

    def _cut_object(self, begun: str) -> str:
        """Return the text of an object that was cut by a length limit."""
        return self._text_of(next((begun + end for end in CUT_ENDS if parsed(begun + end)), begun))


def parsed(text: str) -> dict[str, Any]:
    """Return the JSON object in a text; empty if the text is not an object with a `Content`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and isinstance(value.get("Content"), str) else {}


def passage_of(record: dict[str, Any], content: str) -> Passage | None:
    """Return the passage that an object describes; None without valid times."""
    start_s = time_in(record, "Start")
    end_s = time_in(record, "End")
    if start_s is None or end_s is None:
        return None
    speaker = record.get("Speaker")
    return Passage(content, start_s, max(start_s, end_s), str(speaker) if isinstance(speaker, int | str) else "")


def time_in(record: dict[str, Any], key: str) -> float | None:
    """Return a time in seconds; None if it is missing or not within a recording."""
    seconds = record.get(key)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return float(seconds) if 0 <= seconds <= MAX_AUDIO_S else None


def open_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec of a checkpoint, which reads transcripts with its tokenizer."""
    vocabulary = AsrVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    subwords = subword_codec(TextTokenizer.at(checkpoint), range(vocabulary.num_ids))
    return TextCodec(lambda task: TranscriptReader(subwords.reader(task)), subwords.words)
