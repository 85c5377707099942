"""Tokenization of a request's text, within the family's limits."""

import re

from stretto.errors import InvalidRequest, shown
from stretto.families.base import Family
from stretto.families.tokenizer import TextTokenizer

LEADING_LINE_ENDS = re.compile(r"\s*[\r\n]")


def without_leading_line_ends(text: str) -> str:
    """Return `text` without leading blank lines; the indentation of its first line is kept."""
    blank = LEADING_LINE_ENDS.match(text)
    return text[blank.end() :] if blank else text


def check_text(text: str, path: str, max_chars: int) -> None:
    """Check a text's length and encoding.

    Args:
        text: The text.
        path: Name of the text in error messages.
        max_chars: Largest number of characters.

    Raises:
        InvalidRequest: The text is too long or contains lone surrogates.
    """
    if len(text) > max_chars:
        raise InvalidRequest(path, f"at most {max_chars} characters", f"{len(text)} characters")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(path, "text without lone surrogates", shown(text))


class Subwords:
    """A checkpoint's tokenizer, with ids in the family's text interval."""

    def __init__(self, tokenizer: TextTokenizer, family: Family):
        assert family.subwords is not None, family.name
        self._tokenizer = tokenizer
        self._ids, self._max_chars = family.subwords, family.max_text_chars

    def ids(self, text: str, path: str) -> list[int]:
        """Return the absolute ids of `text`.

        Raises InvalidRequest, which names `path`, if the text is empty, too long, not Unicode, or has no ids in the
        model.
        """
        check_text(text, path, self._max_chars)
        ids = self._tokenizer.encode(text)
        if not ids:
            raise InvalidRequest(path, "text of at least one character", shown(text))
        if max(ids) >= len(self._ids):
            raise InvalidRequest(path, "text that the model has tokens for", shown(text))
        return [self._ids.start + token_id for token_id in ids]
