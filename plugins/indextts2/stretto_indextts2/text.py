"""Normalisation of text for IndexTTS-2's tokenizer: numbers in words, plain punctuation, capitals.

The steps follow `TextNormalizer` and `TextTokenizer` of https://github.com/index-tts/index-tts, which use
WeTextProcessing for numbers. Its rules come from the package wetext, which is optional: without it, texts with digits
are refused. Syllables of pinyin with a tone, such as `xuan4`, names with `·`, and hyphens between words keep their
form.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from stretto.errors import InvalidRequest, shown

# Punctuation that the tokenizer lacks, with its replacement; longer marks come after their first character.
MARKS = {
    **dict.fromkeys("：；;，、:", ","),
    **dict.fromkeys('“”"‘’（）()《》【】[]「」', "'"),
    **dict.fromkeys("·—～~", "-"),
    "。": ".",
    "！": "!",
    "？": "?",
    "\n": " ",
    **dict.fromkeys(("...", ",,,", "……"), "…"),
}
CHINESE_MARKS = MARKS | {"$": "."}
CHINESE = r"[\u4e00-\u9fff]"
# Finals of pinyin, without tone.
FINALS = (
    "a o e i u ü v ai ei ao ou ua ui uo ia ie iu üe ve ue an en in un vn uan üan van uang üang vang uai "
    "ang eng ing ong ian iao iang iong"
)
TONED_SYLLABLE = re.compile(
    rf"(?<![a-z])(?:(?:[zcs]h|[bpmfdtnlgkhjqxzcsryw])?(?:{'|'.join(FINALS.split())})|ng|er)[1-5]", re.IGNORECASE
)
UMLAUT = re.compile(r"(?<=[jqx])[uü](?=(?:n|e|an)*\d)", re.IGNORECASE)
NAME = re.compile(rf"{CHINESE}+(?:[-·—]{CHINESE}+){{1,2}}")
HYPHENATED = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:-[A-Za-z0-9]+)+")
CONTRACTION = re.compile(r"(what|where|who|which|how|t?here|it|s?he|that|this)'s", re.IGNORECASE)
EMAIL = re.compile(r"[a-zA-Z0-9]+@[a-zA-Z0-9]+\.[a-zA-Z]+")
# Characters that are a token each: Hangul, CJK and kana, and their compatibility and full-width forms.
CHARACTERS = re.compile(
    r"([\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff])"
)
HYPHEN = "<H>"  # in a hyphenated word, while numbers are written in words
PACKAGE = "wetext"
ESCAPED = re.compile(r'\\(["\\])')  # wetext 0.1.8 leaves the escapes of its tokens


@cache
def number_rules(language: str) -> Callable[[str], str] | None:
    """Return the function that writes numbers in words, in `zh` or `en`; None without the package wetext."""
    try:
        from wetext import Normalizer
    except ImportError:
        return None
    rules: Any = Normalizer(lang=language, operator="tn", remove_erhua=False)
    return rules.normalize


def reads_as_chinese(text: str) -> bool:
    """Return True if a text has Chinese, toned pinyin or no Latin letters, or begins with an e-mail address."""
    has_letters = re.search("[a-zA-Z]", text) is not None
    if not has_letters or re.search(CHINESE, text) or EMAIL.match(text):
        return True
    return TONED_SYLLABLE.search(text) is not None


def hidden(text: str, pattern: re.Pattern[str], label: str) -> tuple[str, dict[str, str]]:
    """Return the text with matches replaced by names that no rule of numbers changes, and the matches by name."""
    phrases = dict[str, str]()

    def name(match: re.Match[str]) -> str:
        letters = f"<{label}_{_letters(len(phrases))}>"
        phrases[letters] = match[0]
        return letters

    return pattern.sub(name, text), phrases


def _letters(number: int) -> str:
    """Return the digits of a number as letters from a to j."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def spelled_pinyin(syllable: str) -> str:
    """Return a toned syllable as the tokenizer has it: in capitals, with V for the ü after j, q and x."""
    return UMLAUT.sub("v", syllable).upper() if syllable[0] in "jqxJQX" else syllable


def normalised(text: str, path: str) -> str:
    """Return a text with numbers in words and plain punctuation; raise InvalidRequest if numbers cannot be read."""
    is_chinese = reads_as_chinese(text)
    text = CONTRACTION.sub(r"\1 is", text)
    if is_chinese:
        text = text.rstrip()
    text = HYPHENATED.sub(lambda match: match[0].replace("-", HYPHEN), text)
    phrases = dict[str, str]()
    if is_chinese:
        text, syllables = hidden(text, TONED_SYLLABLE, "pinyin")
        text, names = hidden(text, NAME, "n")
        phrases = names | {name: spelled_pinyin(syllable) for name, syllable in syllables.items()}
    text = _in_words(text, "zh" if is_chinese else "en", path)
    for name, phrase in phrases.items():
        text = text.replace(name, phrase)
    text = re.sub(rf"\s*{HYPHEN}\s*", "-", text)
    marks = CHINESE_MARKS if is_chinese else MARKS
    return re.sub("|".join(map(re.escape, marks)), lambda match: marks[match[0]], text)


def _in_words(text: str, language: str, path: str) -> str:
    rules = number_rules(language)
    if rules is None:
        if re.search(r"\d", text):
            raise InvalidRequest(path, f"no digits (the server lacks the package {PACKAGE})", shown(text))
        return text
    try:
        return ESCAPED.sub(r"\1", rules(text))
    except Exception as error:  # the library fails an assertion for characters that its rules do not know
        raise InvalidRequest(path, f"text whose numbers {PACKAGE} can read", shown(text)) from error


def tokenizable(text: str, path: str) -> str:
    """Return a text as the tokenizer reads it: normalised, in capitals, with spaces around CJK characters.

    A single character is not normalised, as in the authors' code.

    Raises:
        InvalidRequest: If the text has numbers that cannot be read, or any digits without the package for them.
    """
    if len(text.strip()) == 1:
        return text
    segments = map(str.strip, CHARACTERS.split(normalised(text, path)))
    return " ".join(segment.upper() for segment in segments if segment)
