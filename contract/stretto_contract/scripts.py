"""Scripts of the letters in a text: those of foreign words, and those that are decoration, as in ¯\\_(ツ)_/¯."""

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

from stretto_contract.normal_forms import normalized

SCRIPTS = {  # keyed by the first word of a letter's Unicode name; for other scripts, messages contain that word
    "CJK": "Chinese characters", "IDEOGRAPHIC": "Chinese characters", "HIRAGANA": "Japanese letters",
    "KATAKANA": "Japanese letters", "KATAKANA-HIRAGANA": "Japanese letters", "HANGUL": "Korean letters",
    "DEVANAGARI": "Devanagari letters (Hindi and others)", "CYRILLIC": "Cyrillic letters (Russian and others)",
}  # fmt: skip
PHONETIC = "PHONETIC"  # letters of phonetic alphabets, which are Latin, but also eyes and ears, as in ʕ•ᴥ•ʔ
LATIN = {"LATIN", "MODIFIER", "FEMININE", "MASCULINE"}  # ʻokina and the like; ª and º
READABLE = {*LATIN, PHONETIC}
DENSE = {"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HANGUL"}  # a letter is a syllable or a word
LETTERS_OF_DENSE_WORD = 2
WITH_SHORT_WORDS = {"CJK", "HANGUL", "CYRILLIC", "GREEK", "HEBREW", "ARABIC"}  # a single letter may be a word
GREEK_SYMBOL = re.compile(r"(?<![Ͱ-Ͽἀ-῿])[Α-ω](?![Ͱ-Ͽἀ-῿])")  # a single letter is a symbol, as in "π" or "Δt"
LATIN_WORD = re.compile(r"[A-Za-z]{2}")
# limits on the listed words in other scripts
MAX_WORDS = 16
MAX_WORD_CHARS = 64
FURTHER_LETTERS = re.compile(r"(?![\u0000-\u024f\u1e00-\u1eff])[^\W\d_]")  # those of other scripts, and a few more
FORMULA = re.compile(r"[\sΑ-ωϑ-ϖ()\[\]|'^_/*+=<>,.;:!-·×÷±−≤≥≠≈→∞√∂∇∑∫∏∈]*")
EDGES = "()[]{}<>.,;:!?\"'“”‘’«»„-–—…*_"
EMOTICON = re.compile(
    r"(?<![^\s(])(?:"
    r">?[:;=][-o*'^]?(?:[()\[\]{}|/\\@$*]+|[dDpPoO3]+)|[xX]D+|<3+|</3"
    r"|\(?[\^>;~=-][_.o-][\^<;~=-][;']?\)?/?|\(?(?:T_T|[oO]_[oO]|[uU]_[uU]|x_x|X_X)\)?|\\o/"
    r")(?![^\s.,!?)])"
)


def without_faces(text: str) -> str:
    """Replace emoticons, and faces that have letters of other scripts, by spaces."""
    words = re.split(r"(\s+)", EMOTICON.sub(" ", text))
    return "".join(" " if is_face(word) else word for word in words)


def other_script(text: str) -> tuple[str, str] | None:
    """Return the script of a text that an English voice cannot read, and its first word in it.

    The result is None if most of its letters are Latin, or if there are none. Latin letters with any accents are
    readable, and so is a single Greek letter used as a symbol.
    """
    if latin_surplus(text) >= 0:
        return None
    word = foreign_words(text)[0]
    script = next(script for script in _word_scripts(word) if script not in READABLE)
    return SCRIPTS.get(script, f"{script.capitalize()} letters"), word


def latin_surplus(text: str) -> int:
    """Return the number of Latin words in a text minus the number of words in other scripts.

    In scripts such as Chinese, two letters count as a word.
    """
    if text.isascii():
        return len(text.split())
    surplus = 0
    for word in without_faces(text).split():
        scripts = _word_scripts(word)
        num_dense = sum(script in DENSE for script in scripts)
        if any(script not in READABLE for script in scripts):
            surplus -= max(1, -(-num_dense // LETTERS_OF_DENSE_WORD))
        elif scripts:
            surplus += 1
    return surplus


def foreign_words(text: str) -> list[str]:
    """Return the words of a text with letters of other scripts."""
    if text.isascii():
        return []
    words = without_faces(text).split()
    return [word for word in words if any(script not in READABLE for script in _word_scripts(word))]


def transliterated_words(text: str) -> list[str]:
    """Return the words of other scripts that `Transliteration` lists for a whole text."""
    transliteration = Transliteration()
    transliteration.is_needed(text)
    return transliteration.words


class Transliteration:
    """Words of other scripts in a text, for a model that reads Latin letters only.

    Args:
        text: The whole text, if it is known.

    Attributes:
        words: Words of other scripts in the clauses so far, without duplicates, at most MAX_WORDS.
    """

    def __init__(self, text: str = ""):
        self._surplus = latin_surplus(text)
        self.words: list[str] = []

    @property
    def is_foreign(self) -> bool:
        """True if most words so far are in other scripts."""
        return self._surplus < 0

    def is_needed(self, clause: str) -> bool:
        """Return True if a clause is in another script, but its text is mostly Latin; record its foreign words."""
        surplus = latin_surplus(clause)
        self._surplus += surplus
        for word in foreign_words(clause):
            if word.strip(EDGES) not in self.words and len(self.words) < MAX_WORDS:
                self.words.append(word.strip(EDGES)[:MAX_WORD_CHARS])
        return surplus < 0 <= self._surplus


def is_face(word: str) -> bool:
    """Return True if a word's letters of other scripts are decoration: no two adjacent letters have the same script."""
    if word.isascii() or LATIN_WORD.search(word) or any(map(str.isdecimal, word)) or has_neighbours(word):
        return False
    core = word.strip(EDGES)
    scripts = {script for script in _scripts(normalized("NFKC", word)) if script and script not in LATIN}
    if scripts <= {"GREEK"}:  # often a mathematical symbol
        return bool(scripts) and not any(map(str.isascii, filter(str.isalnum, core))) and not FORMULA.fullmatch(core)
    return not core.isalnum() if len(core) > 1 else not scripts & WITH_SHORT_WORDS


def has_neighbours(word: str) -> bool:
    """Return True if two adjacent letters have the same script, and it is not Latin."""
    scripts = [] if word.isascii() else _scripts(word)
    return any(first == second and first and first not in LATIN for first, second in pairwise(scripts))


def _word_scripts(word: str) -> list[str]:
    """Return the script of each letter of a word, except Greek symbols."""
    return [script for script in _scripts(GREEK_SYMBOL.sub("", normalized("NFKC", word))) if script]


def _scripts(word: str) -> list[str]:
    """Return the script of each character; empty for one that is not a letter."""
    return [_script(character) for character in word]


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    if "\u0250" <= character <= "\u02af" or "\u1d00" <= character <= "\u1dbf":
        return PHONETIC
    return unicodedata.name(character, "UNKNOWN").partition(" ")[0] if character.isalpha() else ""
