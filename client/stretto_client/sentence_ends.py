"""Signs in a text to speak: emoji, pauses, and the punctuation at the end of a sentence or a line."""

import re

PAUSE = "\x1c"  # represents a pause in a reader's output; its duration is the next value in the reader's `pauses`
EMOJI = (
    "\U0001f000-\U0001faff\u2600-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u231a\u231b\u23e9-\u23fa"
    "\ufe0f\u20e3\U000e0020-\U000e007f"
)
EMOJIS = re.compile(rf" ?[{EMOJI}](?:\u200d?[{EMOJI}])*\u200d?")
CLOSING = ")\"'”’»"  # characters that may follow the punctuation at the end of a sentence
WIDE = "\u0e00-\u0eff\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"  # scripts without spaces between words
# A line that has room for the next word within this number of characters is not wrapped: most texts wrap lines after
# 65 to 80 characters.
WRAPPED_CHARS = 64
MAX_LINE_CHARS = 256  # of a line, this number of characters is examined
ENTRY_WORDS = 2  # a line of at most this number of words is complete even if the next line begins in lower case


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


def is_complete(line: str, following: str) -> bool:
    """Return True if a line without final punctuation is complete, and False if its sentence goes on in the next line.

    Lines of a list, of a poem or of an address are complete, while those of a wrapped paragraph go on. A short line
    goes on if the next one begins in lower case. A line that may be wrapped goes on unless the next one begins with a
    capital letter, as no word within the line does.

    Args:
        line: The line, or its first MAX_LINE_CHARS characters.
        following: Beginning of the next line, with its first word.
    """
    word = following.split(maxsplit=1)[0]
    first = next(filter(str.isalnum, word), "")
    if len(line) + 1 + len(word) > WRAPPED_CHARS:
        return first.isupper() and word != "I" and not any(each[0].isupper() for each in line.split()[1:])
    return not first.islower() or len(line.split()) <= ENTRY_WORDS


def without_emoji(text: str) -> str:
    """Return `text` without emoji and without the space before each emoji."""
    return EMOJIS.sub("", text)
