"""Incremental SSML reader: converts SSML to the text to speak and pauses."""

import re
from collections import deque
from collections.abc import Collection
from typing import NamedTuple, NoReturn
from xml.parsers import expat

from stretto_client.decoration import without_emoji
from stretto_client.errors import RequestRefused
from stretto_client.tags import INVISIBLE, Tag, is_reasoning, needs_space
from stretto_contract.pronunciation import ALPHABETS, InvalidEntry, PhonemesRecord, read_entry
from stretto_contract.sentence_ends import PAUSE, full_stop, last_sign

MAX_PAUSE_S = 10.0  # of one break
MAX_PAUSES_S = 60.0  # of all breaks in a text
MAX_DEPTH = 32  # maximum nesting of elements
STRENGTHS_S = {"none": 0.0, "x-weak": 0.25, "weak": 0.5, "medium": 0.75, "strong": 1.0, "x-strong": 1.25}
TIME = re.compile(r"\+?(\d{1,7}(?:\.\d{0,6})?|\.\d{1,6})(ms|s)")
SILENT = {"metadata", "meta", "lexicon", "desc"}  # names of elements whose text is not spoken
SENTENCES = {"p", "s"}
WITHIN_WORDS = {"phoneme", "sub", "say-as"}  # elements that may begin or end inside a word
NEUTRAL = {"speak", "metadata", "meta", "desc", "sub", "break", "say-as", "token", "w", *SENTENCES}
LEAST_RATE = 0.25
GREATEST_RATE = 4.0
RATES = {
    "x-slow": 0.5,
    "slow": 0.64,
    "medium": 1.0,
    "default": 1.0,
    "fast": 1.55,
    "x-fast": 2.0,
}  # as in Azure
RATE = re.compile(r"([+-]?)(\d{1,4}(?:\.\d{0,4})?)(%?)")
# A character of Unicode's private use precedes a word with phonemes, and makes it an entry of its own: the same word
# may have other phonemes elsewhere in the text.
FIRST_MARK = 0xE000
LAST_MARK = 0xF8FF
MARKS = dict.fromkeys(range(FIRST_MARK, LAST_MARK + 1))
# limits on the reported names of elements without effect
MAX_NAMES = 16
MAX_NAME_CHARS = 64


class RateChange(NamedTuple):
    """Change of the speaking rate, among the pauses in `MarkupReader.pauses`; 2 halves the duration."""

    value: float


class VoiceChange(NamedTuple):
    """Entry of `MarkupReader.pauses`: the text after it is spoken in this voice; None is that of the request."""

    name: str | None


Change = float | RateChange | VoiceChange  # silence in seconds, or a change

SPELLED = {"characters", "spell-out", "verbatim", "digits"}


class SsmlReader:
    """SSML reader based on the standard library's XML parser.

    Document types are rejected, so entities cannot expand.

    Args:
        has_rates: True if changes of the speaking rate have an effect.

    Attributes:
        without_effect: Names of elements and attributes that have no effect, at most MAX_NAMES.
        pronunciations: Phonemes of words of the text, in the form of the option `pronunciations`.
    """

    def __init__(self, alphabets: Collection[str] = (), has_rates: bool = False) -> None:
        self.pauses = deque[Change]()
        self.without_effect: list[str] = []
        self.pronunciations: dict[str, PhonemesRecord] = {}
        self._alphabets = alphabets
        self._has_rates = has_rates
        self._marks: dict[tuple[str, ...], str] = {}  # by word, alphabet and phonemes
        self._phoneme: tuple[int, str, str] | None = None  # depth, alphabet and phonemes of the open phoneme
        self._rate = 1.0
        self._rates = list[tuple[int, float]]()  # depth of each open prosody, and the rate before it
        self._voice: str | None = None
        self._voices = list[tuple[int, str | None]]()  # depth of each open voice element, and the voice before it
        self._parser = parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._add
        parser.StartDoctypeDeclHandler = self._doctype
        self._depth = self._silent = 0  # depth of elements; depth of the outermost element that is not spoken
        self._say_as: tuple[int, str, str] | None = None  # depth, interpret-as and format of the open say-as
        self._run = ""  # text not returned yet
        self._collected = ""  # text of the open say-as or phoneme
        self._last = ""  # sign that was returned
        self._tail = ""  # last character that was returned
        self._cut = ""  # name of an element that has begun or ended after the last text
        self._pauses_s = 0.0  # sum of all pauses
        self._ready: list[str] = []
        self.left_out: list[str] = []  # names of the blocks of reasoning

    def add(self, piece: str) -> str:
        return self._parse(piece.translate(INVISIBLE), False)

    def end(self) -> str:
        return self._parse("", True)

    def _parse(self, piece: str, is_last: bool) -> str:
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError as error:
            self._refuse(
                "well-formed", f"{expat.ErrorString(error.code)} at line {error.lineno}, column {error.offset + 1}"
            )
        except UnicodeEncodeError:
            self._refuse("text of valid characters in", "half of a surrogate pair")
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
        self._note(name, attributes)
        self._cut = "" if name == "break" else name
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
        elif name == "say-as" and not self._is_collecting:
            self._say_as = self._depth, attributes.get("interpret-as", ""), attributes.get("format", "")
        elif name == "phoneme" and not self._is_collecting and self._reads(attributes):
            self._phoneme = self._depth, self._alphabet(attributes), attributes["ph"]
        elif name == "prosody" and "rate" in attributes and self._has_rates and not self._is_collecting:
            rate = self._parse_rate(attributes["rate"])
            self._rates.append((self._depth, self._rate))
            self._change_rate(rate)
        elif name == "voice" and not self._is_collecting:
            self._voices.append((self._depth, self._voice))
            self._change_voice(attributes.get("name", ""))

    def _end(self, name: str) -> None:
        if self._silent == self._depth:
            self._silent = 0
        elif self._say_as is not None and self._say_as[0] == self._depth:
            _, interpretation, _ = self._say_as
            text = self._collected
            self._say_as = None
            self._collected = ""
            self._add(say_as(text, interpretation))
        elif self._phoneme is not None and self._phoneme[0] == self._depth:
            _, alphabet, phonemes = self._phoneme
            text = self._collected
            self._phoneme = None
            self._collected = ""
            self._add(self._marked(text, alphabet, phonemes))
        elif self._rates and self._rates[-1][0] == self._depth:
            self._change_rate(self._rates.pop()[1])
        elif self._voices and self._voices[-1][0] == self._depth:
            self._change_voice(self._voices.pop()[1])
        elif not self._silent and name.rpartition(":")[2] in SENTENCES:
            self._boundary()
        if not self._silent and name.rpartition(":")[2] != "break":
            self._cut = name.rpartition(":")[2]
        self._depth -= 1

    def _add(self, text: str) -> None:
        if self._silent:
            return
        if self._is_collecting:
            self._collected += text
            return
        before = self._run[-1:] or self._tail
        if self._cut and text:
            joint = before + text[0]
            is_inside = self._cut in WITHIN_WORDS and joint.isalpha() and joint.islower()
            is_sign = self._cut == "phoneme" and not before.isalnum()
            if not (is_inside or is_sign) and needs_space(before, text[0]):
                text = f" {text}"
            self._cut = ""
        self._run += text

    @property
    def _is_collecting(self) -> bool:
        return self._say_as is not None or self._phoneme is not None

    def _note(self, name: str, attributes: dict[str, str]) -> None:
        """Record an element or an attribute that has no effect."""
        names = list[str]()
        if name == "prosody":
            others = sorted(attributes.keys() - ({"rate"} if self._has_rates and not self._is_collecting else set()))
            names = [f"prosody.{other}" for other in others]
        elif name == "voice" and not self._is_collecting:
            names = [f"voice.{other}" for other in sorted(attributes.keys() - {"name"})]
        elif name == "phoneme":
            names = [] if self._reads(attributes) and not self._is_collecting else [name]
        elif name not in NEUTRAL and not is_reasoning(Tag("", name, False).block):
            names = [name]
        for element in names:
            if element[:MAX_NAME_CHARS] not in self.without_effect and len(self.without_effect) < MAX_NAMES:
                self.without_effect.append(element[:MAX_NAME_CHARS])

    @staticmethod
    def _alphabet(attributes: dict[str, str]) -> str:
        return ALPHABETS.get(attributes.get("alphabet", "ipa").lower(), "")

    def _reads(self, attributes: dict[str, str]) -> bool:
        """Return True if the model reads the phonemes of an element."""
        return bool(attributes.get("ph", "").strip()) and self._alphabet(attributes) in self._alphabets

    def _marked(self, text: str, alphabet: str, phonemes: str) -> str:
        """Return the text of a phoneme element after a private-use character, by which its phonemes are found."""
        word = " ".join(text.split())
        if not any(map(str.isalnum, word)):
            return text
        mark = self._marks.setdefault((word, alphabet, phonemes), chr(FIRST_MARK + len(self._marks)))
        if len(self._marks) > LAST_MARK - FIRST_MARK:
            self._refuse(f"at most {LAST_MARK - FIRST_MARK} different phoneme elements in", "more")
        record: PhonemesRecord = {"phonemes": phonemes, "alphabet": alphabet}
        try:
            read_entry(mark + word, record)
        except InvalidEntry as error:
            self._refuse(f"{error.expected} in a phoneme element of", error.got)
        self.pronunciations[mark + word] = record
        return text[: len(text) - len(text.lstrip())] + mark + word + text[len(text.rstrip()) :]

    def _parse_rate(self, text: str) -> float:
        match = RATE.fullmatch(text.strip())
        rate = RATES.get(text.strip())
        if match is not None:
            rate = float(match[2]) / (100 if match[3] else 1)
            rate = 1 + float(f"{match[1]}1") * rate if match[1] else rate
        if rate is None or not LEAST_RATE <= rate <= GREATEST_RATE:
            names = ", ".join(RATES)
            self._refuse(f"a prosody rate from {LEAST_RATE:.0%} to {GREATEST_RATE:.0%}, or {names}, in", text[:40])
        return rate

    def _change_rate(self, rate: float) -> None:
        if rate != self._rate:
            self._rate = rate
            self._put_change(RateChange(rate))

    def _change_voice(self, name: str | None) -> None:
        if name != self._voice:
            self._voice = name
            self._put_change(VoiceChange(name))

    def _put_change(self, change: Change) -> None:
        self._flush(len(self._run))
        self._ready.append(PAUSE)
        self._tail = PAUSE
        self.pauses.append(change)

    def _boundary(self) -> None:
        self._flush(len(self._run))
        stop = full_stop(self._last)
        if self._last:
            self._ready.append(f"{stop}\n")
            self._tail = "\n"
            self._last = stop or self._last

    def _pause(self, attributes: dict[str, str]) -> None:
        seconds = STRENGTHS_S.get(attributes.get("strength", "medium"))
        if seconds is None:
            self._refuse(f"a break's strength among {', '.join(STRENGTHS_S)} in", attributes["strength"][:40])
        if "time" in attributes:
            match = TIME.fullmatch(attributes["time"].strip())
            if match is None:
                self._refuse("a break's time in s or ms in", attributes["time"][:40])
            seconds = float(match[1]) / (1000 if match[2] == "ms" else 1)
        if seconds > MAX_PAUSE_S:
            self._refuse(f"breaks of at most {MAX_PAUSE_S:g} s in", f"{seconds:g} s")
        self._pauses_s += seconds
        if self._pauses_s > MAX_PAUSES_S:
            self._refuse(f"breaks of at most {MAX_PAUSES_S:g} s in all in", "more")
        if seconds:
            self._put_change(seconds)

    def _flush(self, num_chars: int) -> None:
        """Output the first `num_chars` characters of the pending text."""
        text = without_emoji(self._run[:num_chars])
        self._run = self._run[num_chars:]
        if text:
            self._ready.append(text)
            self._tail = text[-1]
            self._last = last_sign(text) or self._last


def say_as(text: str, interpretation: str) -> str:
    """Rewrite `text` so that it is spoken according to `interpretation`, the value of `interpret-as` in SSML.

    Unknown values change nothing. Numbers get a form that every family reads correctly: thousands separators (except
    for years), or an ordinal suffix.
    """
    digits = "".join(text.split()).replace(",", "")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= 15
    if interpretation in SPELLED:
        # A capital letter between spaces is a letter for every family; `a` would be an article.
        capitals = (
            character.upper() if character.isascii() else character for character in text if not character.isspace()
        )
        return " ".join(capitals)
    if interpretation == "telephone":
        return ", ".join(" ".join(group) for group in re.findall(r"\d+|[A-Za-z]+", text)) or text
    if interpretation in ("cardinal", "number") and is_number:
        return f"{int(digits):,}"
    if interpretation == "ordinal" and is_number:
        number = int(digits)
        suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{suffix}"
    return text
