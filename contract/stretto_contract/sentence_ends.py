"""Pauses and punctuation at the ends of sentences and lines in a text to speak."""

import re

PAUSE = "\x1c"  # represents a pause in a reader's output; its duration is the next value in the reader's `pauses`
CLOSING = ")\"'”’»"  # characters that may follow the punctuation at the end of a sentence
WIDE = "\u0e00-\u0eff\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"  # scripts without spaces between words
# A line that could hold the next word within this number of characters is not wrapped: few texts have narrower lines,
# and most wrap lines after 65 to 80 characters.
NARROW_CHARS = 22
WRAPPED_CHARS = 64
MAX_LINE_CHARS = 256  # characters of a line that are examined
ENTRY_WORDS = 2  # a short line of at most this number of words is complete even if the next line begins in lower case
# Words after which a sentence continues.
LINKING = set(
    "a an the of to in on at by for with from into onto about over under between among through during without within "
    "against near like and or but nor as than that which who whom whose if when while where because since until after "
    "before my your his her its our their this these those some any no every each is are was were be been being am has "
    "have had do does did will would can could should may might must not very more most called named said says mr mrs "
    "ms dr prof st mount lake president king queen prince princess captain professor doctor uncle aunt saint sir lord "
    "lady mayor senator judge general colonel minister chancellor dear".split()
)
SUBJECTS = set("i we he she they you it".split())  # a line with one of these, before a name, is prose
STARTING = set(  # words that begin a sentence more often than a name
    "the a an he she it we they you i this that these there here his her its our their my your but and or so then when "
    "while after before if as at in on for from with to by not no yes what who where why how is are do does did can "
    "let please now".split()
)
# Words that a hyphen joins to others; after other beginnings, a hyphen at the end of a line only cuts a word.
COMPOUND = set(
    "well self non ex half high low long short all cross semi multi one two three four five six seven eight nine ten "
    "twenty thirty forty fifty sixty seventy eighty ninety first second third full part post pre mid quasi vice north "
    "south east west left right hard soft open old new real free fast slow e co anti so much ill far near wide deep "
    "good best single double triple hand home world state mother father sister brother son daughter step great".split()
)
CUT = re.compile(r"[^\W\d_]\Z")


def is_spoken(text: str) -> bool:
    """Return True if `text` contains a letter or a digit."""
    return any(map(str.isalnum, text))


def last_sign(text: str) -> str:
    """Return the last character of `text` except spaces, closing quotes and brackets; empty if none."""
    return text.rstrip().rstrip(CLOSING)[-1:]


def full_stop(last: str) -> str:
    """Return the punctuation to add after a text that ends with `last`; empty if it ends a sentence."""
    if not (last.isalnum() or last in ("%", "°", "€", "$", "£")):
        return ""
    return "。" if "\u3040" <= last <= "\u9fff" else "."


class LineEnds:
    """Detector of line ends that end a sentence. It learns the width at which the lines of a text are wrapped.

    Lines of a list, a poem or an address are complete. In a wrapped paragraph, the sentence continues in the next line.
    It also continues if the next line begins in lower case, unless both are short, or if the last word needs another
    one. Before a capital letter or a digit, it continues if the line is as long as earlier ones that continued, so that
    the next word did not fit.
    """

    def __init__(self) -> None:
        self._longest = 0  # length of the longest line whose sentence continued
        self._overflow = 0  # minimum length of these lines with the next word; 0 if there are none

    def is_complete(self, line: str, following: str) -> bool:
        """Return True if a line without final punctuation is complete, not continued in the next line.

        Args:
            line: The line, or its first MAX_LINE_CHARS characters.
            following: Beginning of the next line, with its first word.
        """
        word = following.split(maxsplit=1)[0]
        words = line.split()
        first = next(filter(str.isalnum, word), "")
        length = len(line) + 1 + len(word)
        is_linked = bool(words) and words[-1].lower() in LINKING and first.isalnum()
        if length <= NARROW_CHARS:
            return not (first.islower() or is_linked) or len(words) <= ENTRY_WORDS
        if first.islower() or is_linked:
            self._learn(len(line), length)
            return False
        if self._overflow and max(self._longest, len(line)) < min(self._overflow, length):
            return False
        is_prose = any(other.lower() in SUBJECTS for other in words[1:])
        if not self._overflow and is_prose and first.isupper() and word.lower() not in STARTING:
            return False
        if length > WRAPPED_CHARS and not self._overflow:
            return first.isupper() and word != "I" and not any(other[0].isupper() for other in words[1:])
        return True

    def _learn(self, length: int, with_next: int) -> None:
        """Adjust the estimated line length to a line that did not end a sentence; start anew if the two contradict."""
        overflow = min(self._overflow or with_next, with_next)
        longest = max(self._longest, length)
        is_consistent = longest < overflow
        self._longest = longest if is_consistent else length
        self._overflow = overflow if is_consistent else with_next


def joins(before: str, following: str) -> str | None:
    """Return the hyphen or empty text between two parts of a word that a line end divides; None if they are no parts.

    Args:
        before: End of the first line, without its hyphen.
        following: Beginning of the next line.
    """
    if CUT.search(before) is None or not following[:1].islower():
        return None
    word = before.split()[-1].lower()
    return "-" if "-" in word or re.sub(r"\W", "", word) in COMPOUND else ""
