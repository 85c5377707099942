"""Roman numerals in words: "Henry VIII", "Part II", "page xii", "the XIX century", "MCMXCIV"."""

import re

from stretto.families.tiny.letters import SHORT_WORDS
from stretto.families.tiny.numbers import cardinal, ordinal, year

VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
VALID = re.compile(r"(?=[MDCLXVI])M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
REIGNED = set(  # a numeral after one of these names is an ordinal: "Henry the eighth"
    "Henry Louis Charles George Edward William James Richard Elizabeth Mary John Paul Pius Benedict Francis Philip "
    "Philippe Frederick Friedrich Wilhelm Nicholas Alexander Catherine Ivan Peter Napoleon Leo Gregory Urban Innocent "
    "Clement Ramses Ramesses Margrethe Carl Karl Gustav Haakon Harald Olav Christian Albert Leopold Ferdinand Alfonso "
    "Felipe Juan Pedro Ptolemy Darius Xerxes Cyrus Robert Stephen Edmund Sixtus Boniface Constantine Otto "
    "Joseph Rudolf Maximilian Victor Umberto Abdullah Hussein Hassan Mohammed Selim Murad Mehmed Rama Willem".split()
)
NUMBERED = set(  # a numeral after one of these words is a count: "Chapter four"
    "Chapter Part Volume Book Act Scene Section Article Appendix Figure Table Title Type Phase Stage Level Class Grade "
    "Mark War Bowl Apollo Rocky Fantasy Division Group Category Factor Olympiad Canto Verse Unit Lesson Page "
    "Episode Season Round Exercise Problem Theorem Step Tier Annex Schedule Amendment Civilization".split()
)
LOWER_CUES = "pages?|pp?\\.|act|scene|chapter|part|volume|vol\\.|section|book|verse|stage|phase|step|item|paragraph"
NUMERAL = re.compile(r"\b([A-Z][a-z]+)((?:\s+[A-Z][a-z]+)?)\s+([MDCXLVI]+)\b(?!['’]\w{2}|\.[A-Z])")
NO_PRONOUN = re.compile(r"$|[.,;:!?)]|\s+of\b|'s\b")  # after "Elizabeth I"
WORLD_WAR = re.compile(r"\bWW(I{1,3})\b")
LOWER = re.compile(rf"\b((?i:{LOWER_CUES})\s?)([ivxlc]{{1,8}})(?:(-)([ivxlc]{{1,8}}))?\b(?!')")
LISTED = re.compile(r"\(([ivx]{2,6}|i)\)|(?:^|(?<=[\n.,;:] ))([ivx]{2,6}|i)[.)](?=\s)")
HEADED = re.compile(r"(?:^|(?<=[.!?:] ))([IVX]{2,6})\.(?=\s[A-Z])")  # the number of a heading; I. is an initial
CENTURY = re.compile(
    r"\b(the\s+)?([IVX]{1,6})(?:th|st|nd|rd)?(?:\s?-\s?([IVX]{1,6})(?:th|st|nd|rd)?)?"
    r"(?=\s(?:[Cc]entur(?:y|ies)|[Dd]ynasty|[Ll]egion|[Cc]orps|Olympi\w+|Congress|Army)\b)"
)
ALONE = re.compile(r"\b(?<!')(?!XXX\b)(?:[IVX]{3,8}|M[MDCLXVI]{4,14})\b(?!')")


def value_of(numeral: str) -> int | None:
    """Return the value of a Roman numeral in capitals; None if it is not valid."""
    if VALID.fullmatch(numeral) is None:
        return None
    values = [VALUES[letter] for letter in numeral]
    return sum(-value if value < after else value for value, after in zip(values, [*values[1:], 0], strict=True))


def read_numerals(text: str) -> str:
    """Replace Roman numerals with words if their form or the words around them show that they are numbers."""
    text = WORLD_WAR.sub(lambda match: f"World War {cardinal(len(match.group(1)))}", text)
    text = CENTURY.sub(_century, text)
    text = NUMERAL.sub(_named, text)
    text = LOWER.sub(_paged, text)
    text = HEADED.sub(lambda match: _counted(match.group(1), match.group(), "."), text)
    text = LISTED.sub(lambda match: _counted(match.group(1) or match.group(2), f"{match.group()} ", ", "), text)
    return ALONE.sub(lambda match: _counted(match.group(), match.group()), text)


def _counted(numeral: str, otherwise: str, end: str = "") -> str:
    value = value_of(numeral.upper())
    if value is None:
        return otherwise
    return (year(value) if 1100 <= value < 2100 else cardinal(value)) + end


def _century(match: re.Match[str]) -> str:
    first = value_of(match.group(2))
    last = value_of(match.group(3)) if match.group(3) else 0
    if first is None or last is None or match.group(2) == "I":
        return match.group()
    article = match.group(1) or ""
    return f"{article}{ordinal(first)}" + (f" to {ordinal(last)}" if last else "")


def _paged(match: re.Match[str]) -> str:
    cue, first, dash, last = match.groups()
    if value_of(first.upper()) is None or (first == "i" and not dash):
        return match.group()
    words = f"{cue}{_counted(first, first)}"
    return f"{words} to {_counted(last, last)}" if dash else words


def _named(match: re.Match[str]) -> str:
    """Return "Henry the eighth" or "Part two"."""
    second = match.group(2).strip()
    name = second or match.group(1)
    numeral = match.group(3)
    count = value_of(numeral)
    if count is None or (name.lower() in SHORT_WORDS and name not in NUMBERED):
        return match.group()
    before = match.group()[: -len(numeral)]
    if name in NUMBERED:
        return f"{before}{cardinal(count)}"
    # "Elizabeth I was told" may refer to two people.
    is_pronoun = numeral == "I" and not NO_PRONOUN.match(match.string, match.end())
    if name in REIGNED and not is_pronoun and count < 60:
        return f"{before}the {ordinal(count)}"
    # initials, sizes, other names
    if len(numeral) == 1 or set(numeral) & set("MDC") or numeral in ("XL", "XX", "LI", "LV", "LX", "XI"):
        return match.group()
    return f"{before}the {ordinal(count)}" if second and count <= 3 else f"{before}{cardinal(count)}"
