"""Unicode normalisation in linear time."""

import re
import unicodedata
from functools import cache
from typing import Literal

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
# Combining marks that a letter keeps. Python sorts the marks of a letter in quadratic time: 100,000 of them, in 200 kB,
# take 6 s. The limit is that of the Stream-Safe Text Format (Unicode Standard Annex #15).
MAX_MARKS = 30
LAST_MARK = 0x1_FFFF  # no later character has a combining class


def normalized(form: Form, text: str) -> str:
    """Return a text in a normal form; a letter keeps its first MAX_MARKS combining marks."""
    if text.isascii():
        return text
    return unicodedata.normalize(form, _further_marks().sub(r"\1", text))


@cache
def _further_marks() -> re.Pattern[str]:
    marks = "".join(filter(unicodedata.combining, map(chr, range(LAST_MARK + 1))))
    return re.compile(f"([{marks}]{{{MAX_MARKS}}})[{marks}]+")
