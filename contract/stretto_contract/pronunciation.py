"""Pronunciation dictionaries: words of a text, and how they are spoken.

The server replaces words, so that its dictionary also applies to clients without this package. It does so in
`preprocessing/request.py` for whole texts and in `triton_io/speech_service.py` for streamed ones. The gateway stores
the dictionary of a key and sends its entries with each request.
"""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict

from stretto_contract.normal_forms import normalized
from stretto_contract.phonemes import SYMBOLS

MAX_WORD_CHARS = 100
MAX_SPELLING_CHARS = 400
MAX_ENTRIES = 10_000  # maximum for a server's dictionary; fewer fit into a request, whose JSON is limited
MAX_GAP = 3  # white space between two words of an entry, in characters of the text
# Scripts without spaces between words. There, an entry may begin and end at any character.
WIDE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9f]")
# Positions in an entry at which a word may begin: words, characters of those scripts, and signs. At each of them in a
# text, the search may run through an entry, so their number limits its time.
STARTS = re.compile(rf"{WIDE.pattern}|(?:(?!{WIDE.pattern})\w)+|[^\s\w]")
MAX_STARTS = 20
# Tags in the notations of models, such as <laugh>, [SPEAKER0], {HH AH0}, and the name of a speaker in a dialogue, such
# as "Speaker 1:". Their contents are never replaced.
TAGS = (
    (re.compile(r"<[^\s<>][^<>]{0,200}>"), re.compile(r"<(?:[^\s<>][^<>]{0,200})?")),
    (re.compile(r"\[[^\s\[\]]{1,40}\]"), re.compile(r"\[[^\s\[\]]{0,40}")),
    (re.compile(r"\{[^{}]{1,200}\}"), re.compile(r"\{[^{}]{0,200}")),
    (
        re.compile(r"speaker[^\S\n]{1,3}[0-9]{1,3}[^\S\n]{0,3}:", re.IGNORECASE),
        re.compile(r"s(?:p(?:e(?:a(?:k(?:e(?:r(?:[^\S\n]{1,3}(?:[0-9]{1,3}[^\S\n]{0,3})?)?)?)?)?)?)?)?", re.IGNORECASE),
    ),
)
OPENERS = "<[{sS"
# Characters of tags and special tokens. An entry has none of them, so that no dictionary adds one to a text.
MARKUP = re.compile(r"[<>\[\]{}|\\◁▷｜]")
APOSTROPHES = "'’ʼ"
# Names of the phonetic alphabets that users write, in lower case.
ALPHABETS = {
    **dict.fromkeys(("cmu", "cmu-arpabet", "arpabet", "x-cmu", "x-arpabet"), "cmu"),
    **dict.fromkeys(("pinyin", "x-pinyin", "x-amazon-pinyin"), "pinyin"),
    "ipa": "ipa",
}


class PhonemesRecord(TypedDict):
    """Phonemes in the JSON form of an entry."""

    phonemes: str
    alphabet: NotRequired[str]


Entries = Mapping[str, str | PhonemesRecord]


class InvalidEntry(ValueError):
    """An entry of a dictionary is invalid.

    Attributes:
        path: Path of the entry in its dictionary; empty for the dictionary itself.
    """

    def __init__(self, path: str, expected: str, got: str):
        super().__init__(f"{path}: expected {expected}, got {got}" if path else f"expected {expected}, got {got}")
        self.path = path
        self.expected = expected
        self.got = got


@dataclass(frozen=True, slots=True)
class DictionaryEntry:
    """Entry of a dictionary.

    Attributes:
        word: Word or phrase of the text.
        spelling: Text that is spoken instead or, with an `alphabet`, phonemes separated by spaces.
        alphabet: Phonetic alphabet, a value of ALPHABETS; empty if the spelling is ordinary text.
    """

    word: str
    spelling: str
    alphabet: str = ""

    @property
    def record(self) -> str | PhonemesRecord:
        """The JSON form of the entry without its word."""
        return {"phonemes": self.spelling, "alphabet": self.alphabet} if self.alphabet else self.spelling


def shown(text: object) -> str:
    """Return a value for an error message, escaped to ASCII and cut with `…` to at most 60 characters."""
    escaped = ascii(text)
    return escaped if len(escaped) <= 60 else f"{escaped[:57]}…"


def read_entry(word: str, value: Any) -> DictionaryEntry:
    """Return the entry for a word and a spelling, or object of `phonemes` and `alphabet`; else raise InvalidEntry."""
    path = shown(word)[1:-1]
    _check(path, word, MAX_WORD_CHARS)
    if (num_starts := len(STARTS.findall(word))) > MAX_STARTS:
        raise InvalidEntry(
            path, f"at most {MAX_STARTS} words, or characters of a script without spaces", f"{num_starts}"
        )
    if isinstance(value, str):
        _check(path, value, MAX_SPELLING_CHARS)
        return DictionaryEntry(word, value.strip())
    phonemes = value.get("phonemes") if isinstance(value, Mapping) else None
    if not isinstance(phonemes, str) or not value.keys() <= {"phonemes", "alphabet"}:
        raise InvalidEntry(path, "a spelling, or an object of phonemes and alphabet", shown(value))
    alphabet = value.get("alphabet", "cmu")
    name = ALPHABETS.get(alphabet.lower()) if isinstance(alphabet, str) else None
    if name is None:
        raise InvalidEntry(f"{path}.alphabet", f"one of {', '.join(sorted(set(ALPHABETS.values())))}", shown(alphabet))
    _check(f"{path}.phonemes", phonemes, MAX_SPELLING_CHARS)
    if name in SYMBOLS:
        expected, pattern = SYMBOLS[name]
        if unknown := next((symbol for symbol in phonemes.split() if not pattern.fullmatch(symbol)), ""):
            raise InvalidEntry(f"{path}.phonemes", expected, shown(unknown))
    return DictionaryEntry(word, " ".join(phonemes.split()), name)


def _check(path: str, text: str, max_chars: int) -> None:
    if not 0 < len(text) <= max_chars:
        raise InvalidEntry(path, f"1 to {max_chars} characters", f"{len(text)}")
    if not any(map(str.isalnum, text)) or text != text.strip():
        raise InvalidEntry(path, "text that begins and ends without a space and has a letter or a digit", shown(text))
    if mark := MARKUP.search(text):
        raise InvalidEntry(path, "text without characters of markup", shown(mark.group()))
    if bad := next(
        (character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")), None
    ):
        raise InvalidEntry(path, "text without control characters", shown(bad))


def read_entries(record: Any, max_entries: int = MAX_ENTRIES) -> tuple[DictionaryEntry, ...]:
    """Return the entries of an object from words to values of `read_entry`; raise InvalidEntry if one is invalid."""
    if not isinstance(record, Mapping):
        raise InvalidEntry("", "an object of words and their spellings", shown(record))
    if len(record) > max_entries:
        raise InvalidEntry("", f"at most {max_entries} entries", f"{len(record)}")
    return tuple(read_entry(word, value) for word, value in record.items())


def entries_record(entries: Iterable[DictionaryEntry]) -> dict[str, str | PhonemesRecord]:
    """Return the JSON form of a dictionary."""
    return {entry.word: entry.record for entry in entries}


class Replacement(NamedTuple):
    """A replaced part of a text.

    Attributes:
        start, end: Its position in the result, in characters.
        word: The part of the original text.
        source_start, source_end: Its position in the original text.
    """

    start: int
    end: int
    word: str
    source_start: int
    source_end: int


class Dictionary:
    """Dictionary whose words can be found in a text in linear time. Its memory is proportional to its words.

    Args:
        spellings: Text that is spoken instead of each word.
    """

    def __init__(self, spellings: Mapping[str, str]):
        self._exact = dict[str, str]()  # by words as they are written
        first = dict[str, str]()  # by words in lower case
        for word, spelling in spellings.items():
            for form in (word,) if word.isascii() else _forms(word):
                written = _plain(" ".join(form.split()))
                self._exact.setdefault(written, spelling)
                first.setdefault(_folded(written), spelling)
        self._words = sorted(first)
        self._spellings = [first[word] for word in self._words]
        self._begins = frozenset(word[0] for word in self._words)

    def __bool__(self) -> bool:
        return bool(self._words)

    def begins(self, character: str) -> bool:
        """Return True if a word of the dictionary begins with this character, which must be folded."""
        return character in self._begins

    def find(self, text: str, folded_text: str, start: int, is_last: bool) -> tuple[int, str] | None:
        """Return the end and the spelling of the longest word of the dictionary that begins at `start`.

        If several words differ only in letter case, the one spelled as in the text is used, otherwise the first one.
        The end is `start` if there is no such word. The result is None if more of the text is needed.

        Args:
            folded_text: The text with its characters folded.
        """
        words = self._words
        at = start
        best = (start, "")
        read = written = ""
        index = 0  # index of the first word that begins with `read`
        while at < len(text):
            length = 1
            character = folded_text[at]
            if text[at].isspace():
                length = next((n for n in range(1, MAX_GAP + 1) if not text[at + n : at + n + 1].isspace()), 0)
                character = " "
                if not length:
                    return best
            read += character
            if not words[index].startswith(read):
                index = bisect_left(words, read, index)
                if index == len(words) or not words[index].startswith(read):
                    return best
            written += text[at] if character != " " else character
            at += length
            if len(words[index]) == len(read):
                is_end = True if is_marked(text[start]) else ends_word(text, at, is_last)
                if is_end is None:
                    return None
                if is_end:
                    best = at, self._exact.get(_plain(written), self._spellings[index])
        index += len(words[index]) == len(read)  # now the index of the first longer word, if there is one
        goes_on = index < len(words) and words[index].startswith(read)
        return None if goes_on and not is_last else best


def _forms(word: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((normalized("NFC", word), normalized("NFD", word))))


def _folded(text: str) -> str:
    """Return a text in lower case and with one kind of apostrophe. Each character keeps its position."""
    # Lower case depends on the neighbours for Σ alone, and is longer than one character for İ alone.
    return _plain("İ".join(map(str.lower, text.replace("Σ", "σ").split("İ"))))


def _plain(text: str) -> str:
    return text if text.isascii() else text.replace("’", "'").replace("ʼ", "'")


def is_marked(character: str) -> bool:
    """Return True for a character of private use, which marks one position in a text (`stretto_client.ssml`).

    An entry that begins with it applies there even within a word.
    """
    return "\ue000" <= character <= "\uf8ff"


def is_inside(before: str, after: str) -> bool:
    """Return True if two adjacent characters belong to the same word."""
    if unicodedata.category(after)[0] == "M":
        return True
    if WIDE.match(before) or WIDE.match(after):
        return False
    return _is_letter(before) and _is_letter(after)


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def ends_word(text: str, at: int, is_last: bool) -> bool | None:
    """Return True if a word of `text` ends before `at`; None if more of the text is needed.

    An apostrophe continues a word, as in "don't", unless an "s" follows, as in "SQL's".
    """
    following = text[at : at + 3]
    if not following:
        return True if is_last else None
    if is_inside(text[at - 1], following[0]) or _is_glued(following[0], text[at - 1]):
        return False
    if following[0] not in APOSTROPHES or not _is_letter(text[at - 1]) or WIDE.match(text[at - 1]):
        return True
    if len(following) < 3 and not is_last and (len(following) < 2 or following[1] in "sS"):
        return None
    return (
        len(following) < 2
        or not _is_letter(following[1])
        or (following[1] in "sS" and not (following[2:] and _is_letter(following[2])))
    )


def _is_glued(letter: str, sign: str) -> bool:
    """Return True if an entry that begins or ends with a sign would match within a word, as ".NET" in "ASP.NET"."""
    return _is_letter(letter) and not _is_letter(sign) and not WIDE.match(letter)


def tag_end(text: str, start: int, is_last: bool) -> int | None:
    """Return the end of the tag that begins at `start`; `start` if there is none, None if more text is needed."""
    for complete, begun in TAGS:
        if match := complete.match(text, start):
            return match.end()
        if not is_last and begun.fullmatch(text, start):
            return None
    return start


@dataclass(frozen=True)
class Pronouncer:
    """Replacement of words in one text, whole or in parts. The result does not depend on how the text is split.

    Spellings are not searched for words again.

    Attributes:
        dictionaries: If several have words of the same length, the first one is used.
    """

    dictionaries: tuple[Dictionary, ...]
    _held: str = ""  # end of the text that may belong to a word that goes on
    _before: str = ""  # character before it
    _num_read: int = 0  # number of characters before it
    _num_written: int = 0

    @property
    def held(self) -> str:
        return self._held

    def after(self, text: str, is_last: bool = True) -> tuple[str, list[Replacement], "Pronouncer"]:
        """Append text without changing this object.

        Returns:
            Text that can be spoken now; the words replaced in it, with positions in the whole text; and the object for
                the next part.
        """
        if not self.dictionaries:
            return text, [], self
        text = self._held + text
        at = 0
        before = self._before
        folded_text = _folded(text)
        parts = list[str]()
        changes = list[Replacement]()
        num_written = self._num_written
        while at < len(text):
            end = at
            spelling = ""
            begins = not before or not (is_inside(before, text[at]) or _is_glued(before, text[at]))
            if text[at] in OPENERS and (begins or not text[at].isalpha()):
                tag_stop = tag_end(text, at, is_last)
                if tag_stop is None:
                    break
                end = tag_stop
            if end == at and (begins or is_marked(text[at])):
                match = self._find(text, folded_text, at, is_last)
                if match is None:
                    break
                end, spelling = match
            if spelling:
                source = self._num_read + at
                span = num_written, num_written + len(spelling)
                changes.append(Replacement(*span, text[at:end], source, source + end - at))
            end = max(end, at + 1)
            parts.append(spelling or text[at:end])
            num_written += len(parts[-1])
            before = text[end - 1]
            at = end
        later = Pronouncer(self.dictionaries, text[at:], before, self._num_read + at, num_written)
        return "".join(parts), changes, later

    def _find(self, text: str, folded_text: str, at: int, is_last: bool) -> tuple[int, str] | None:
        best = at, ""
        for dictionary in self.dictionaries:
            if dictionary.begins(folded_text[at]):
                match = dictionary.find(text, folded_text, at, is_last)
                if match is None:
                    return None
                best = match if match[0] > best[0] else best
        return best


def occurring(words: Iterable[str], text: str) -> tuple[str, ...]:
    """Return the words and phrases that may occur in a text, because all of their parts do; read the text only once."""
    parts = set(STARTS.findall(folded(text)))
    return tuple(word for word in words if parts.issuperset(STARTS.findall(folded(word))))


def folded(text: str) -> str:
    """Return a text without differences that the search for words ignores: letter case and white space."""
    return " ".join(_folded(normalized("NFC", text)).split())
