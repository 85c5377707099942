"""Token ids of texts: symbols of pronunciations from a dictionary, or bytes, as in NeMo's tokenizers.

NeMo spells some words at random in place of their pronunciation; here, as in its evaluation, none are.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from stretto.errors import CheckpointError, shown
from stretto.family.sections import Section

MAX_PREFIX = 8  # characters
MAX_SOUNDS = 256  # maximum per word, so that texts have a bounded number of ids
ENGLISH = "en-US"
MIXED = "mixed"
Case = Literal["upper", "lower", "mixed"]
FIRST_BYTE = 3  # id of byte 0
END_OF_BYTES = 1
NUM_BYTES = 384  # ids of ByT5, with those that no text has
LATIN = "A-Za-z"
# with Devanagari, five more Indian scripts and Korean
LETTERS = (
    f"{LATIN}À-ÖØ-öø-ÿ"
    r"\u0900-\u0963\u0966-\u097F\u0980-\u09FF\u0A80-\u0AFF\u0B80-\u0BFF\u0C00-\u0C7F\u0C80-\u0CFF"
    r"\uAC00-\uD7A3\u1100-\u11FF\u3130-\u318F"
)
PRONOUNCED = re.compile(rf"[{LETTERS}\d]")
APOSTROPHE = {ord("’"): "'"}
QUOTES = {**APOSTROPHE, ord("”"): '"', ord("“"): '"'}


def _words(letters: str) -> re.Pattern[str]:
    """Return a pattern of words, of symbols between two bars, and of the characters between those."""
    return re.compile(rf"[{letters}](?:[{letters}'-]*[{letters}])?|\|[^|]*\||[^{letters}|]+")


ENGLISH_WORDS = _words(LATIN)
WORDS = _words(LETTERS)


class Bytes(Section):
    """Ids for the bytes of a text, and for its end."""

    offset: int

    @property
    def size(self) -> int:
        return NUM_BYTES

    def encode(self, text: str) -> list[int]:
        return [*(self.offset + FIRST_BYTE + byte for byte in text.encode()), self.offset + END_OF_BYTES]


class Pronunciations(Section):
    """Dictionary of a language's words. Words that it lacks are spelled.

    Attributes:
        offset: Id of the first symbol.
        symbols: Symbols in the order of their ids.
        prefix: Prefix of a letter's symbol, which distinguishes it from a phoneme.
        is_padded: True if a space begins and ends a text.
        spelled: Words that are spelled although they are in the dictionary.
        words: Pronunciations, one character for each symbol; empty for a word that has several and is spelled.
    """

    offset: int
    locale: str
    symbols: list[str]
    case: Case
    prefix: Annotated[str, Field(max_length=MAX_PREFIX)]
    is_padded: bool
    spelled: list[str]
    words: dict[str, Annotated[str, Field(max_length=MAX_SOUNDS)]]

    @property
    def size(self) -> int:
        return len(self.symbols)


class PronouncedText:
    """Encoder of texts by a dictionary of pronunciations."""

    def __init__(self, dictionary: Pronunciations) -> None:
        self._dictionary = dictionary
        self._ids = {symbol: dictionary.offset + at for at, symbol in enumerate(dictionary.symbols)}
        self._spelled = frozenset(dictionary.spelled)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without the characters that have no symbol."""
        symbols = [symbol for symbol in self._symbols(text) if symbol in self._ids]
        while symbols and symbols[-1] == " ":
            symbols.pop()
        if self._dictionary.is_padded:
            symbols = [" ", *symbols, " "]
        return [self._ids[symbol] for symbol in symbols]

    def _symbols(self, text: str) -> Iterator[str]:
        is_english = self._dictionary.locale == ENGLISH
        if is_english:
            letters = unicodedata.normalize("NFD", text)
            text = "".join(letter for letter in letters if unicodedata.category(letter) != "Mn").translate(QUOTES)
        else:
            text = unicodedata.normalize("NFC", text).translate(APOSTROPHE)
        text = unicodedata.normalize("NFC", text)
        for match in (ENGLISH_WORDS if is_english else WORDS).finditer(text):
            word = match[0]
            if word[0] == "|":
                yield from (f"{self._dictionary.prefix}{symbol}" for symbol in word[1:-1].split(" "))
            else:
                yield from self._sounds(word.lower() if is_english else word)

    def _sounds(self, word: str) -> list[str]:
        """Return the symbols of a word. An unknown word with hyphens is looked up part by part."""
        word = cased(word, self._dictionary.case)
        sounds = self._known(word)
        if sounds is not None:
            return sounds
        first, *others = word.split("-")
        symbols = self._known_or_spelled(first)
        for other in others:
            symbols += ["-", *self._known_or_spelled(other)]
        return symbols

    def _known_or_spelled(self, word: str) -> list[str]:
        sounds = self._known(word)
        return self._letters(word) if sounds is None else sounds

    def _known(self, word: str) -> list[str] | None:
        """Return the symbols of a word, or None if the dictionary does not have it."""
        words = self._dictionary.words
        if not PRONOUNCED.search(word):
            return list(word)
        if word in self._spelled:
            return self._letters(word)
        if self._dictionary.locale == ENGLISH:
            inflected = self._inflected(word)
            if inflected:
                return list(inflected)
        if self._dictionary.case == MIXED and word not in words:
            word = word.upper()
        return list(words.get(word, "")) or None

    def _inflected(self, word: str) -> str | None:
        """Return the sounds of an English word that the dictionary has only without its final s."""
        words = self._dictionary.words
        if word in words or word.upper() in words:
            return None
        for ending in ("'s", "s"):
            if len(word) > len(ending) and word.endswith((ending, ending.upper())):
                stem = word[: -len(ending)]
                stem = stem if stem in words else stem.upper()
                sounds = words.get(stem)
                if sounds:
                    return sounds + _final_s(stem[-1], ending)
        return None

    def _letters(self, word: str) -> list[str]:
        return [f"{self._dictionary.prefix}{letter}" for letter in word]


def cased(word: str, case: str) -> str:
    """Return a word in a case, one of `Case`."""
    if case == MIXED:
        return word
    return word.upper() if case == "upper" else word.lower()


def _final_s(last: str, ending: str) -> str:
    """Return the sounds of a final s after a word that ends with the letter `last`."""
    if last in "Tt":
        return "s"
    return "ɪz" if last in "Ss" and ending == "'s" else "z"


class Texts:
    """Encoder of texts in the languages of a model.

    Attributes:
        size: Number of ids that texts may have.
        languages: Codes of the languages, as the release names them.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        """Read a record of `convert_text.read_texts`; raise CheckpointError if it is malformed."""
        size = record.get("size")
        languages = record.get("languages")
        if not isinstance(size, int) or not isinstance(languages, dict):
            raise CheckpointError(f"expected size and languages, got {shown(dict(record))}")
        self.size = size
        self._encoders: dict[str, Bytes | PronouncedText] = {}
        for code, entry in languages.items():
            self._encoders[code] = self._encoder(entry, f"languages: {code}")
        self.languages = tuple(self._encoders)

    def encode(self, text: str, language: str) -> list[int]:
        """Return the ids of a text in a language, one of `languages`."""
        return self._encoders[language].encode(text)

    def _encoder(self, record: Any, path: str) -> Bytes | PronouncedText:
        has_symbols = isinstance(record, dict) and "symbols" in record
        table = Pronunciations.read(record, path) if has_symbols else Bytes.read(record, path)
        if not 0 <= table.offset <= self.size - table.size:
            expected = f"{table.size} ids below {self.size}"
            raise CheckpointError(f"{path}: offset: expected {expected}, got {table.offset}")
        return table if isinstance(table, Bytes) else PronouncedText(table)
