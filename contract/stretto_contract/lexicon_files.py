"""Files of pronunciation dictionaries: JSON in the form of the request option, and PLS, which other services read.

PLS is W3C's Pronunciation Lexicon Specification 1.0. Document types are refused, so that entities cannot expand.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from stretto_contract.pronunciation import (
    MAX_ENTRIES,
    DictionaryEntry,
    InvalidEntry,
    entries_record,
    read_entries,
    shown,
)

MAX_FILE_BYTES = 4 << 20
NAMESPACE = "http://www.w3.org/2005/01/pronunciation-lexicon"
MAX_DEPTH = 8
# Of one byte a character, or expat's own. Python would store the names of unknown encodings for ever.
ENCODING = re.compile(r"utf-8|utf-16(?:le|be)?|us-ascii|iso-8859-\d{1,2}|windows-125\d|koi8-[ru]", re.IGNORECASE)
READ = ("grapheme", "alias", "phoneme")  # elements with text


class _PlsReader:
    """Reader of PLS. The first alias of a word precedes its phonemes, because every model can speak it."""

    def __init__(self) -> None:
        self.record: dict[str, object] = {}
        self._path: list[str] = []
        self._text = ""
        self._alphabet = self._own_alphabet = ""
        self._words = list[str]()
        self._aliases = list[str]()
        self._phonemes = list[dict[str, str]]()
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._add
        parser.StartDoctypeDeclHandler = self._doctype
        parser.XmlDeclHandler = self._declaration

    def read(self, data: bytes) -> dict[str, object]:
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            position = f"line {error.lineno}, column {error.offset + 1}"
            raise InvalidEntry("", "well-formed PLS", f"{expat.ErrorString(error.code)} at {position}") from None
        except LookupError:  # such as iso-8859-12
            raise InvalidEntry("", "PLS in UTF-8", "an unknown encoding") from None
        return self.record

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and ENCODING.fullmatch(encoding) is None:
            raise InvalidEntry("", "PLS in UTF-8", f"the encoding {shown(encoding)}")

    def _doctype(self, *_: object) -> NoReturn:
        raise InvalidEntry("", "PLS without a document type", "a DOCTYPE")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        if not self._path and name != "lexicon":
            raise InvalidEntry("", "PLS with the root element lexicon", shown(name))
        if len(self._path) == MAX_DEPTH:
            raise InvalidEntry("", f"elements nested at most {MAX_DEPTH} deep", "more")
        self._path.append(name)
        if name == "lexicon":
            self._alphabet = attributes.get("alphabet", "ipa")
        elif name == "lexeme":
            self._words = []
            self._aliases = []
            self._phonemes = []
        elif name in READ:
            self._text = ""
            self._own_alphabet = attributes.get("alphabet", self._alphabet)

    def _add(self, text: str) -> None:
        if self._path and self._path[-1] in READ:
            self._text += text

    def _end(self, name: str) -> None:
        name = self._path.pop()
        text = " ".join(self._text.split())
        if name == "grapheme":
            self._words.append(text)
        elif name == "alias":
            self._aliases.append(text)
        elif name == "phoneme":
            self._phonemes.append({"phonemes": text, "alphabet": self._own_alphabet})
        elif name == "lexeme":
            values: list[object] = [*self._aliases, *self._phonemes]
            if not values or not self._words:
                got = shown(self._words[0]) if self._words else "none"
                raise InvalidEntry("", "a grapheme and an alias or phoneme in each lexeme", got)
            for word in self._words:
                self.record.setdefault(word, values[0])
            if len(self.record) > MAX_ENTRIES:
                raise InvalidEntry("", f"at most {MAX_ENTRIES} entries", "more")


def read_lexicon(data: bytes, max_entries: int = MAX_ENTRIES) -> tuple[DictionaryEntry, ...]:
    """Return the entries of a dictionary in JSON or PLS, which begins with `<`; raise InvalidEntry if it is invalid."""
    if len(data) > MAX_FILE_BYTES:
        raise InvalidEntry("", f"at most {MAX_FILE_BYTES} bytes", f"{len(data)}")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return read_entries(_PlsReader().read(data), max_entries)
    try:
        record = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_each_once)
    except InvalidEntry:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidEntry("", "a dictionary in JSON or PLS", f"an error: {str(error)[:100]}") from None
    return read_entries(record, max_entries)


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at]) if len(names) < 1000 else ""
        raise InvalidEntry("", "each word once", shown(twice) if twice else "a repeated word")
    return record


def read_lexicon_file(path: Path) -> tuple[DictionaryEntry, ...]:
    """Return the entries of a dictionary's file; raise InvalidEntry or, if it cannot be read, OSError."""
    with path.open("rb") as file:
        return read_lexicon(file.read(MAX_FILE_BYTES + 1))


def write_json(entries: Iterable[DictionaryEntry]) -> str:
    """Return a dictionary as JSON, one entry per line."""
    return json.dumps(entries_record(entries), ensure_ascii=False, indent=1) + "\n"


def write_pls(entries: Iterable[DictionaryEntry]) -> str:
    """Return a dictionary as PLS, whose language is undetermined, because an entry has none."""
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<lexicon version="1.0" xmlns="{NAMESPACE}" alphabet="ipa" xml:lang="und">',
    ]
    for entry in entries:
        if entry.alphabet:
            spelled = f"<phoneme alphabet={quoteattr(entry.alphabet)}>{escape(entry.spelling)}</phoneme>"
        else:
            spelled = f"<alias>{escape(entry.spelling)}</alias>"
        lines.append(f"  <lexeme><grapheme>{escape(entry.word)}</grapheme>{spelled}</lexeme>")
    return "\n".join([*lines, "</lexicon>", ""])
