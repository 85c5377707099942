"""Incremental reader of text without markup."""

import re
from collections import deque

from stretto_client.ssml import Change
from stretto_client.tags import TagFilter
from stretto_contract.sentence_ends import MAX_LINE_CHARS, WIDE, LineEnds, full_stop, last_sign

BREAK = re.compile(r"\r?\n")
LINE_ENDS = re.compile(r"\r?\n\s*")
FIRST_WORD = re.compile(rf"[{WIDE}]|[^\s{WIDE}]+(?=[\s{WIDE}])")


class PlainReader:
    """Reader that leaves out the tags of language models, and adds a full stop to lines without final punctuation.

    These lines are the same as for `MarkdownReader`. All other text is returned immediately.
    """

    def __init__(self, tags: TagFilter) -> None:
        self.pauses = deque[Change]()
        self._tags = tags
        self._line_ends = LineEnds()
        self._line = ""  # beginning of the current line
        self._last = ""  # last character returned, as in `last_sign`
        self._held = ""  # line ends after a line without final punctuation, and the beginning of the next word

    @property
    def left_out(self) -> list[str]:
        return self._tags.left_out

    def add(self, piece: str) -> str:
        return self._read(self._tags.add(piece), is_last=False)

    def end(self) -> str:
        return self._read(self._tags.end(), is_last=True)

    def _read(self, text: str, is_last: bool) -> str:
        text = self._held + text
        ready = list[str]()
        self._held = ""
        at = 0
        while at < len(text):
            match = BREAK.search(text, at)
            stop = match.start() if match else len(text) - (text.endswith("\r") and not is_last)
            self._line = (self._line + text[at:stop])[:MAX_LINE_CHARS]
            self._last = last_sign(text[at:stop]) or self._last
            ready.append(text[at:stop])
            ends = LINE_ENDS.match(text, stop)
            at = stop if ends is None else ends.end()
            if ends is None or (added := self._added(ends.group(), text, at, is_last)) is None:
                self._held = text[stop:]
                break
            ready += added, ends.group()
            self._line = self._last = ""
        return "".join(ready)

    def _added(self, ends: str, text: str, at: int, is_last: bool) -> str | None:
        """Return the full stop to add before line ends; None if more of the text after them is needed."""
        added = full_stop(self._last)
        if not added:
            return ""
        match = FIRST_WORD.match(text, at)
        rest_of_text = text[at:] if is_last else ""
        word = match.group() if match else rest_of_text
        if not word:
            return "" if is_last else None
        return added if ends.count("\n") > 1 or self._line_ends.is_complete(self._line, word) else ""
