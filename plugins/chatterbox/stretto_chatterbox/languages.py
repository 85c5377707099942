"""Text rules for the 23 languages of Chatterbox Multilingual, as in the authors' `MTLTokenizer`.

Text is lower-cased and decomposed (NFKD), which also spells Korean syllables as letters. Chinese characters are spelled
as Cangjie codes, and Japanese kanji as hiragana. A language token, such as `[fr]`, precedes the text.

Some languages need a package that the server does not depend on. Chinese requires spacy-pkuseg (MIT) and its model, and
Japanese requires pykakasi (GPL). Russian is read without stress marks if russian_text_stresser is missing. Hebrew is
read without vowels, because the authors' code calls dicta_onnx without its model file, which fails.
"""

import json
import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family import base
from stretto.untrusted_files import read_text

logger = logging.getLogger(__name__)

LANGUAGES = dict(
    pair.split(":")
    for pair in (
        "ar:arabic da:danish de:german el:greek en:english es:spanish fi:finnish fr:french he:hebrew hi:hindi "
        "it:italian ja:japanese ko:korean ms:malay nl:dutch no:norwegian pl:polish pt:portuguese ru:russian sv:swedish "
        "sw:swahili tr:turkish zh:chinese"
    ).split()
)
CODES = {name: code for code, name in LANGUAGES.items()} | {code: code for code in LANGUAGES}
FOLDER = "languages"  # folder in a checkpoint that contains the Cangjie table
CANGJIE_FILE = "Cangjie5_TC.json"  # published name of the Cangjie table
CHINESE_PACKAGE = "spacy_pkuseg"
CHINESE_MODEL = "spacy_ontonotes"
JAPANESE_PACKAGE = "pykakasi"
RUSSIAN_PACKAGE = "russian_text_stresser"
MAX_CHARACTERS = 200_000  # maximum number of table entries; the published table has about 90,000
MAX_CODE = 8  # maximum number of letters in a Cangjie code; real codes have at most 5
KANJI = range(0x4E00, 0xA000)
LED_BY_SPACE = ("は", "へ")  # beginnings of readings that resemble a particle and are therefore preceded by a space


def missing_packages(has_cangjie: bool) -> dict[str, str]:
    """Map the code of each language that cannot be spoken here to the missing package or file."""
    missing = {}
    if not has_cangjie:
        missing["zh"] = f"{CANGJIE_FILE} of the release, which the checkpoint lacks"
    elif find_spec(CHINESE_PACKAGE) is None:
        missing["zh"] = f"{CHINESE_PACKAGE}, which is not installed"
    elif not chinese_model().is_dir():
        missing["zh"] = f"the model {CHINESE_MODEL} of {CHINESE_PACKAGE} in {chinese_model()}, which is missing"
    if find_spec(JAPANESE_PACKAGE) is None:
        missing["ja"] = f"{JAPANESE_PACKAGE}, which is not installed"
    return missing


def plain_languages() -> tuple[str, ...]:
    """Return the codes of languages whose text gets no vowel or stress marks here."""
    return ("he",) if find_spec(RUSSIAN_PACKAGE) else ("he", "ru")


def chinese_model() -> Path:
    """Return the folder in which the segmenter's package keeps its default model."""
    return Path(os.path.expanduser(os.environ.get("PKUSEG_HOME", "~/.pkuseg"))) / CHINESE_MODEL


def read_cangjie(path: Path) -> dict[str, str]:
    """Read the Cangjie code of each character from a JSON list of texts `character<TAB>code`.

    If earlier characters have the same code, a number is appended to it. Further columns are ignored.
    """
    try:
        entries = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a list of characters and codes, got {error!r}") from error
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_CHARACTERS:
        got = len(entries) if isinstance(entries, list) else type(entries).__name__
        raise CheckpointError(f"{path}: expected a list of 1 to {MAX_CHARACTERS} texts, got {got}")
    codes = dict[str, str]()
    places = dict[tuple[str, str], int]()
    numbers = dict[str, int]()
    for entry in entries:
        columns = entry.split("\t") if isinstance(entry, str) else []
        if len(columns) < 2 or not 0 < len(columns[1]) <= MAX_CODE:
            raise CheckpointError(f"{path}: expected a character, a tab and a code, got {shown(entry)}")
        character, code = columns[:2]
        codes[character] = code
        places.setdefault((code, character), numbers.get(code, 0))
        numbers[code] = numbers.get(code, 0) + 1
    return {character: f"{code}{places[code, character] or ''}" for character, code in codes.items()}


def as_read(words: Sequence[Mapping[str, str]]) -> str:
    """Return a Japanese text, given as words of pykakasi, with kanji replaced by hiragana (NFKD)."""
    readings = []
    for word in words:
        text = word["orig"]
        reading = word["hira"]
        if any(ord(character) in KANJI for character in text):
            text = f" {reading}" if reading.startswith(LED_BY_SPACE) else reading
        readings.append(text)
    return unicodedata.normalize("NFKD", "".join(readings))


@dataclass(frozen=True)
class RequiredLanguages(base.Languages):
    """Languages of a multilingual release. Each request has to name its language.

    Attributes:
        missing: Missing packages or files, keyed by the name of the language that cannot be spoken without them.
        plain: Codes of the languages that are read without marks, such as vowel marks.
    """

    missing: Mapping[str, str] = field(default_factory=dict, hash=False)
    plain: tuple[str, ...] = ()

    @classmethod
    def of_release(cls, codes: Sequence[str], has_cangjie: bool) -> base.Languages:
        """Return the languages of a release, or none for the English release, which has no codes."""
        if not codes:
            return base.Languages()
        missing = missing_packages(has_cangjie)
        supported = {name: code for name, code in CODES.items() if code in codes}
        return cls(
            tuple(name for name, code in supported.items() if code not in missing),
            {name: missing[code] for name, code in supported.items() if code in missing},
            tuple(code for code in plain_languages() if code in codes),
        )

    def choose(self, requested: Any) -> str:
        name = requested.lower() if isinstance(requested, str) else ""
        if name not in self.names:
            needed = f" ({name} needs {self.missing[name]})" if name in self.missing else ""
            got = "no value" if requested is None else shown(name if needed else requested)
            raise InvalidRequest("options.language", f"one of {', '.join(self.names)}{needed}", got)
        return name

    def profile(self) -> Mapping[str, Any]:
        return {"requires_language": True} | ({"languages_plain": list(self.plain)} if self.plain else {})


class LanguageTokenizers:
    """Converter of text to parts for the tokenizer, by the rules of the languages that can be spoken here.

    Args:
        cangjie: Cangjie code of each Chinese character; empty if there is no table.
        segment: Splits a Chinese text into words.
        read: Splits a Japanese text into words with their readings.
        stress: Adds stress marks to a Russian text.
    """

    def __init__(
        self,
        tokens: Mapping[str, int],
        cangjie: Mapping[str, str],
        segment: Callable[[str], Sequence[str]] | None = None,
        read: Callable[[str], Sequence[Mapping[str, str]]] | None = None,
        stress: Callable[[str], str] | None = None,
    ):
        self._tokens = tokens
        self._cangjie = cangjie
        self._segment = segment
        self._read = read
        self._stress = stress

    def pieces(self, text: str, language: str, max_chars: int) -> list[str | int]:
        """Convert a text to plain parts and the ids of tokens that only the language's rules add.

        Args:
            language: Name or code.
            max_chars: Maximum length after decomposition, which may turn one character into 18.

        Raises:
            InvalidRequest: If the text is too long, or a package that the language needs cannot read it.
        """
        code = CODES[language]
        text = unicodedata.normalize("NFKD", text.lower())
        if len(text) > max_chars:
            raise InvalidRequest("text", f"at most {max_chars} characters", f"{len(text)} after decomposition (NFKD)")
        try:
            parts = self._by_rules(text, code)
        except Exception as error:  # a package may raise anything
            logger.exception("the text of a request could not be prepared in %s", LANGUAGES[code])
            expected = f"text that the package for {LANGUAGES[code]} can read"
            raise InvalidRequest("text", expected, type(error).__name__) from error
        return [self._tokens[f"[{code}]"], *parts]

    def _by_rules(self, text: str, code: str) -> list[str | int]:
        if code == "zh" and self._segment is not None:
            return self._chinese(" ".join(self._segment(text)))
        if code == "ja" and self._read is not None:
            text = as_read(self._read(text))
        elif code == "ru" and self._stress is not None:
            text = self._stress(text)
        elif code == "ko":
            text = text.strip()
        return [text]

    def _chinese(self, text: str) -> list[str | int]:
        """Replace the known characters of a Chinese text with the token ids of their Cangjie codes."""
        parts: list[str | int] = []
        for character in text:
            code = self._cangjie.get(character) if unicodedata.category(character) == "Lo" else None
            names = [character] if code is None else [f"[cj_{letter}]" for letter in (*code, ".")]
            for name in names:
                token_id = None if code is None else self._tokens.get(name)
                if token_id is not None:
                    parts.append(token_id)
                elif parts and isinstance(parts[-1], str):
                    parts[-1] += name
                else:
                    parts.append(name)
        return parts


def open_languages(folder: Path, tokens: Mapping[str, int]) -> LanguageTokenizers:
    """Return the converter for the languages that the checkpoint and the installed packages support."""
    path = folder / CANGJIE_FILE
    missing = missing_packages(path.exists())
    cangjie = read_cangjie(path) if path.exists() else {}
    segment = None if "zh" in missing else _opened(CHINESE_PACKAGE, "pkuseg", str(chinese_model())).cut
    read = None if "ja" in missing else _opened(JAPANESE_PACKAGE, "kakasi").convert
    stress = None
    if "ru" not in plain_languages():
        stress = _opened(f"{RUSSIAN_PACKAGE}.text_stresser", "RussianTextStresser").stress_text
    return LanguageTokenizers(tokens, cangjie, segment, read, stress)


def _opened(module: str, name: str, *arguments: str) -> Any:
    """Create an instance of the class `name` in a module; raise CheckpointError if that fails."""
    try:
        return getattr(import_module(module), name)(*arguments)
    except Exception as error:  # a package may raise anything
        raise CheckpointError(f"{module}: installed, but cannot be opened: {error!r}") from error
