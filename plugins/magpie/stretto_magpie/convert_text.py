"""Conversion of the tokenizers in a Magpie archive to the record that `text.Texts` reads.

The ids of all tokenizers follow one another in the order of the config, so each tokenizer's number of ids must be
known.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from io import StringIO
from typing import Any, get_args

from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import check_value, entry
from stretto_magpie.archive import CONFIG, IN_ARCHIVE
from stretto_magpie.text import ENGLISH, LETTERS, MAX_PREFIX, MIXED, Bytes, Case, Pronunciations, cased

TextOf = Callable[[str], str]
Words = dict[str, list[str]]
MODULE = "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers."
PHONEMES = f"{MODULE}IPATokenizer"
# Numbers of ids of the tokenizers of languages that are not supported.
SIZES = {
    f"{MODULE}ChinesePhonemesTokenizer": 109,
    f"{MODULE}JapanesePhonemeTokenizer": 175,
    f"{MODULE}HindiCharsTokenizer": 191,
    f"{MODULE}ArabicCharsTokenizer": 164,
}
BYTES = "google/byt5-small"
PUNCTUATION = ',.!?-:;/"()[]{}'
GUILLEMETS = "«»‹›"
PUNCTUATION_OF = {
    ENGLISH: PUNCTUATION,
    "es-ES": f"{PUNCTUATION}{GUILLEMETS}¿¡",
    "de-DE": f"{PUNCTUATION}{GUILLEMETS}„“‚‘‒–—",
    "pt-BR": f"{PUNCTUATION}{GUILLEMETS}“”‘’–—…",
    "hi-IN": f"{PUNCTUATION}।॥",
    "vi-VN": PUNCTUATION,
}
# Tokenizers of languages, for releases whose config does not name them.
LANGUAGES = {
    "en": ["english_phoneme"],
    "de": ["german_phoneme"],
    "es": ["spanish_phoneme"],
    "fr": ["french_chartokenizer"],
    "it": ["italian_phoneme"],
    "vi": ["vietnamese_phoneme"],
}
MAPPING = "language_to_tokenizer_mapping"
MAX_LANGUAGES = 64
MAX_SOURCES = 16  # maximum number of files of a dictionary
UNSUPPORTED = ("non_default_punct_list", "fixed_vocab", "silence", "add_blank_at")
UNSTRESSED = dict.fromkeys(map(ord, "ˈˌ"))
VARIANT = re.compile(r"\([0-9]+\)")
STARTS_WORD = re.compile(f"[{LETTERS}']")
NOT_IN_WORD = re.compile(rf"[^{LETTERS}\d]")


def read_texts(config: Mapping[str, Any], text_of: TextOf) -> dict[str, Any]:
    """Return the record for `text.Texts`; raise CheckpointError if a value is missing or not supported.

    `text_of` returns the text of a file in the archive by name.
    """
    tables: dict[str, Bytes | Pronunciations] = {}
    offset = 0
    for name, options in _few(_mapping(config, "text_tokenizers"), "text_tokenizers").items():
        path = f"text_tokenizers.{name}"
        target = str(_mapping(config, path).get("_target_"))
        if target in SIZES:
            offset += SIZES[target]
            continue
        check_value(f"{path}._target_", target, PHONEMES, "AutoTokenizer", file=CONFIG)
        if target == PHONEMES:
            table: Bytes | Pronunciations = _pronunciations(config, path, offset, text_of)
        else:
            check_value(f"{path}.pretrained_model", options.get("pretrained_model"), BYTES, file=CONFIG)
            table = Bytes(offset=offset)
        tables[name] = table
        offset += table.size
    tokenizers = _few(_mapping(config, MAPPING), MAPPING) if MAPPING in config else LANGUAGES
    named = {
        str(code): name
        for code, names in tokenizers.items()
        for name in tables
        if isinstance(names, list) and [name] == names[:1]
    }
    return {"size": offset, "languages": {code: tables[name].model_dump() for code, name in named.items()}}


def _few(values: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return `values`; raise CheckpointError if there are more than MAX_LANGUAGES, as each has a dictionary."""
    if len(values) > MAX_LANGUAGES:
        raise CheckpointError(f"{CONFIG}: {path}: expected at most {MAX_LANGUAGES} entries, got {len(values)}")
    return values


def _mapping(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    value = entry(config, path, CONFIG)
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{CONFIG}: {path}: expected a mapping, got {shown(value)}")
    return value


def _pronunciations(config: Mapping[str, Any], path: str, offset: int, text_of: TextOf) -> Pronunciations:
    """Return the dictionary of the IPATokenizer at a dotted path of a config."""
    options = _mapping(config, path)
    g2p = _mapping(config, f"{path}.g2p")
    locale = options.get("locale", ENGLISH)
    case = g2p.get("grapheme_case", "upper")
    prefix = g2p.get("grapheme_prefix") or ""
    if not isinstance(prefix, str) or len(prefix) > MAX_PREFIX:
        expected = f"at most {MAX_PREFIX} characters"
        raise CheckpointError(f"{CONFIG}: {path}.g2p.grapheme_prefix: expected {expected}, got {shown(prefix)}")
    spells_ambiguous = g2p.get("ignore_ambiguous_words", True)
    for name, value, supported in (
        ("locale", locale, [*PUNCTUATION_OF]),
        ("g2p.locale", g2p.get("locale", ENGLISH), [locale]),
        ("g2p.grapheme_case", case, get_args(Case)),
        ("g2p.ignore_ambiguous_words", spells_ambiguous, [False] if case == MIXED else [False, True]),
        ("punct", options.get("punct", True), [True]),
        *((name, options.get(name), [None]) for name in UNSUPPORTED),
    ):
        check_value(f"{path}.{name}", value, *supported, file=CONFIG)
    words = _read_words(g2p.get("phoneme_dict"), text_of)
    if g2p.get("use_stresses") is False:
        words = {word: [sounds.translate(UNSTRESSED) for sounds in variants] for word, variants in words.items()}
    symbols = {symbol for variants in words.values() for sounds in variants for symbol in sounds}
    if g2p.get("use_chars") or g2p.get("phoneme_probability") is not None:
        spellings = (NOT_IN_WORD.sub("", cased(word, case)) for word in words)
        symbols |= {f"{prefix}{letter}" for spelling in spellings for letter in spelling}
    symbols |= set(PUNCTUATION_OF[locale] if options.get("locale_specific_punct", True) else PUNCTUATION)
    if options.get("apostrophe"):
        symbols.add("'")
    space = [] if " " in symbols else [" "]
    heteronyms = _lines(g2p["heteronyms"], text_of) if g2p.get("heteronyms") else []
    record = {
        "offset": offset,
        "locale": locale,
        "symbols": [*sorted(symbols), *space, "<pad>", "<oov>"],
        "case": case,
        "prefix": prefix,
        "is_padded": bool(options.get("pad_with_space")),
        "spelled": [cased(word.rstrip(), case) for word in heteronyms],
        "words": {
            word: "" if spells_ambiguous and len(variants) > 1 else variants[0]
            for word, variants in _cased_words(words, case).items()
        },
    }
    return Pronunciations.read(record, f"{CONFIG}: {path}")


def _read_words(sources: Any, text_of: TextOf) -> Words:
    """Return each word's pronunciations from one or several dictionaries, in the order of their lines."""
    words: Words = {}
    names = sources if isinstance(sources, list) else [sources]
    if len(names) > MAX_SOURCES:
        raise CheckpointError(f"{CONFIG}: g2p.phoneme_dict: expected at most {MAX_SOURCES} files, got {len(names)}")
    for source in names:
        for line in _lines(source, text_of):
            composed = unicodedata.normalize("NFC", line)
            word, *sounds = composed.split() or [""]
            if STARTS_WORD.match(composed) and sounds:
                words.setdefault(VARIANT.sub("", word), []).append("".join(sounds))
    if not words:
        raise CheckpointError(f"{CONFIG}: g2p.phoneme_dict: expected a dictionary with words, got {shown(sources)}")
    return words


def _lines(name: Any, text_of: TextOf) -> Iterable[str]:
    """Return the lines of a file in the archive; raise CheckpointError unless `name` begins with IN_ARCHIVE."""
    if not isinstance(name, str) or not name.startswith(IN_ARCHIVE):
        expected = f"a file of the archive, such as {IN_ARCHIVE}words.dict"
        raise CheckpointError(f"{CONFIG}: g2p: expected {expected}, got {shown(name)}")
    return StringIO(text_of(name.removeprefix(IN_ARCHIVE)), newline=None)


def _cased_words(words: Words, case: str) -> Words:
    """Return the words in a case; for mixed case, also in capitals."""
    in_case: Words = {}
    for word, variants in words.items():
        in_case[cased(word, case)] = variants
        if case == MIXED and not word.isupper():
            in_case[word.upper()] = variants
    return in_case
