"""Incremental SSML reader: converts SSML to the text to speak and pauses."""

import re
from collections import deque
from typing import NoReturn
from xml.parsers import expat

from stretto_client.errors import RequestRefused
from stretto_client.sentence_ends import PAUSE, full_stop, last_sign, without_emoji
from stretto_client.tags import INVISIBLE, Tag, is_reasoning

MAX_PAUSE_S, MAX_PAUSES_S = 10.0, 60.0  # limits on one break, and on all breaks in a text
MAX_DEPTH = 32  # maximum nesting of elements
STRENGTHS_S = {"none": 0.0, "x-weak": 0.25, "weak": 0.5, "medium": 0.75, "strong": 1.0, "x-strong": 1.25}
TIME = re.compile(r"\+?(\d{1,7}(?:\.\d{0,6})?|\.\d{1,6})(ms|s)")
SILENT = {"metadata", "meta", "lexicon", "desc"}  # names of elements whose text is not spoken
SENTENCES = {"p", "s"}
SPELLED = {"characters", "spell-out", "verbatim", "digits"}


class SsmlReader:
    """SSML reader based on the standard library's XML parser.

    Document types are rejected, so entities cannot expand.
    """

    def __init__(self) -> None:
        self.pauses = deque[float]()
        self._parser = parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self._add, self._doctype
        self._depth = self._silent = 0  # depth of elements; depth of the outermost element that is not spoken
        self._say_as: tuple[int, str, str] | None = None  # depth, interpret-as and format of the open say-as
        self._run = ""  # text not returned yet
        self._say_as_text = ""  # text of the open say-as
        self._last = ""  # sign that was returned
        self._pauses_s = 0.0  # total
        self._ready: list[str] = []
        self.left_out: list[str] = []  # names of the blocks of reasoning

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready to be spoken."""
        return self._parse(piece.translate(INVISIBLE), False)

    def end(self) -> str:
        """End the text; return the rest of the text to speak."""
        return self._parse("", True)

    def _parse(self, piece: str, is_last: bool) -> str:
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError as error:
            self._refuse(
                "well-formed", f"{expat.ErrorString(error.code)} at line {error.lineno}, column {error.offset + 1}"
            )
        if is_last:
            self._flush(len(self._run))
        elif (words := self._run.split()) and not self._run[-1].isspace():  # the last word may be incomplete
            self._flush(len(self._run[: -len(words[-1])].rstrip()))
        else:
            self._flush(len(self._run.rstrip()))
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _refuse(self, expected: str, got: str) -> NoReturn:
        raise RequestRefused(f"text: expected {expected} SSML, got {got}")

    def _doctype(self, *_: object) -> None:
        self._refuse("no document type in", "a DOCTYPE")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"elements nested at most {MAX_DEPTH} deep in", "more")
        name = name.rpartition(":")[2]
        if self._depth == 1 and name != "speak":
            self._refuse("the root element speak of", name[:40])
        if self._silent:
            return
        if name in SILENT:
            self._silent = self._depth
        elif is_reasoning(Tag("", name, False).block):
            self._silent = self._depth
            self.left_out = [*self.left_out, name] if name not in self.left_out else self.left_out
        elif name == "sub" and "alias" in attributes:
            self._add(attributes["alias"])
            self._silent = self._depth
        elif name == "break":
            self._pause(attributes)
        elif name in SENTENCES:
            self._boundary()
        elif name == "say-as" and self._say_as is None:
            self._say_as = self._depth, attributes.get("interpret-as", ""), attributes.get("format", "")

    def _end(self, name: str) -> None:
        if self._silent == self._depth:
            self._silent = 0
        elif self._say_as is not None and self._say_as[0] == self._depth:
            (_, kind, _), text = self._say_as, self._say_as_text
            self._say_as, self._say_as_text = None, ""
            self._add(say_as(text, kind))
        elif not self._silent and name.rpartition(":")[2] in SENTENCES:
            self._boundary()
        self._depth -= 1

    def _add(self, text: str) -> None:
        if self._silent:
            return
        if self._say_as is not None:
            self._say_as_text += text
        else:
            self._run += text

    def _boundary(self) -> None:
        self._flush(len(self._run))
        stop = full_stop(self._last)
        if self._last:
            self._ready.append(f"{stop}\n")
            self._last = stop or self._last

    def _pause(self, attributes: dict[str, str]) -> None:
        seconds = STRENGTHS_S.get(attributes.get("strength", "medium"))
        if seconds is None:
            self._refuse(f"a break's strength among {', '.join(STRENGTHS_S)} in", attributes["strength"][:40])
        if "time" in attributes:
            found = TIME.fullmatch(attributes["time"].strip())
            if found is None:
                self._refuse("a break's time in s or ms in", attributes["time"][:40])
            seconds = float(found[1]) / (1000 if found[2] == "ms" else 1)
        if seconds > MAX_PAUSE_S:
            self._refuse(f"breaks of at most {MAX_PAUSE_S:g} s in", f"{seconds:g} s")
        self._pauses_s += seconds
        if self._pauses_s > MAX_PAUSES_S:
            self._refuse(f"breaks of at most {MAX_PAUSES_S:g} s in all in", "more")
        if seconds:
            self._flush(len(self._run))
            self._ready.append(PAUSE)
            self.pauses.append(seconds)

    def _flush(self, num_chars: int) -> None:
        """Return the first `num_chars` characters of the pending text as output."""
        text, self._run = without_emoji(self._run[:num_chars]), self._run[num_chars:]
        if text:
            self._ready.append(text)
            self._last = last_sign(text) or self._last


def say_as(text: str, kind: str) -> str:
    """Rewrite `text` so that it is spoken as `kind`, the value of `interpret-as` in SSML.

    Unknown kinds change nothing. Numbers get a form that every family reads correctly: thousands separators (except for
    years), or an ordinal suffix.
    """
    digits = "".join(text.split()).replace(",", "")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= 15
    if kind in SPELLED:
        # A capital letter between spaces is a letter for every family; `a` would be an article.
        capitals = (each.upper() if each.isascii() else each for each in text if not each.isspace())
        return " ".join(capitals)
    if kind == "telephone":
        return ", ".join(" ".join(group) for group in re.findall(r"\d+|[A-Za-z]+", text)) or text
    if kind in ("cardinal", "number") and is_number:
        return f"{int(digits):,}"
    if kind == "ordinal" and is_number:
        number = int(digits)
        suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{suffix}"
    return text
