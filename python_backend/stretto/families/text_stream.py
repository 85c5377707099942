"""Incremental tokenization of streamed text: tokens are final once no further text can change them.

A byte-level BPE merges characters only within a pre-token, so tokens of complete pre-tokens are final. These parts may
still change:

- the last pre-token that is not only space, and the space after it, which may merge with what follows,
- a character that a combining mark may join or reorder in NFC,
- the beginning of an added token.
"""

import codecs
import itertools
import unicodedata
from copy import copy

from stretto.errors import InvalidRequest, shown
from stretto.families.tokenizer import TextTokenizer
from stretto.preprocessing.subwords import without_leading_line_ends

MAX_PENDING_CHARS = 4096  # limit of text without the end of a word


class TextStream:
    """Incremental tokenizer of one text. `push` takes UTF-8, cut anywhere; `close` ends the text."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
        self._pending = ""

    @property
    def num_pending(self) -> int:
        """Number of characters whose tokens may still change."""
        return len(self._pending)

    def copy(self) -> "TextStream":
        """Return an independent copy with the same pending text."""
        other = TextStream(self._tokenizer)
        other._decoder.setstate(self._decoder.getstate())
        other._pending = self._pending
        return other

    def push(self, text: bytes) -> list[int]:
        """Return the tokens that became final with `text`; UnicodeDecodeError if it continues with invalid UTF-8."""
        self._pending += self._decoder.decode(text)
        ids, spelled, stops = self._split()
        stop = self._stable_stop()
        num_bytes = max((each for each in stops if each <= stop), default=0)
        ends = itertools.accumulate(map(len, spelled))
        self._pending = b"".join(spelled)[num_bytes:].decode()
        return [token_id for token_id, end in zip(ids, ends, strict=True) if end <= num_bytes]

    def close(self) -> list[int]:
        """Return the remaining tokens; UnicodeDecodeError if the text ends inside a character."""
        self._pending += self._decoder.decode(b"", final=True)
        ids, self._pending = self._tokenizer.encode(self._pending), ""
        return ids

    def _split(self) -> tuple[list[int], list[bytes], list[int]]:
        """Return the pending text's tokens, their bytes, and byte offsets of the pre-tokens that are not only space.

        The pending text is replaced by its form after the tokenizer's normalization.
        """
        ids, words = self._tokenizer.encode_words(self._pending)
        spelled = [self._tokenizer.bytes_of(token_id) for token_id in ids]
        self._pending = b"".join(spelled).decode()
        starts, at = [], 0
        for _, tokens in itertools.groupby(zip(words, spelled, strict=True), key=lambda each: each[0]):
            word = b"".join(text for _, text in tokens)
            if word.decode().strip():
                starts.append(at)
            at += len(word)
        return ids, spelled, starts

    def _stable_stop(self) -> int:
        """Return how many pending bytes neither a combining mark nor a begun added token can change."""
        text = self._pending
        starter = next((at for at in reversed(range(len(text))) if not unicodedata.combining(text[at])), 0)
        first = max(0, len(text) - self._tokenizer.longest_added)  # a longer suffix cannot begin an added token
        begun = next((at for at in range(first, len(text)) if self._tokenizer.begins_added(text[at:])), len(text))
        return len(text[: min(starter, begun)].encode())


class SubwordStream:
    """Incremental conversion of one text to a family's ids in `subwords`, without leading line ends."""

    def __init__(self, tokenizer: TextTokenizer, subwords: range):
        self._stream, self._subwords = TextStream(tokenizer), subwords
        self._blank: str | None = ""  # leading space; None after the first other character

    def after(self, text: str, is_last: bool) -> tuple[list[int], "SubwordStream"]:
        """Return the ids that `text` completes, and the stream after it; this one is unchanged.

        Raises:
            InvalidRequest: If a word is too long, or the model has no token for part of the text.
        """
        behind = copy(self)
        behind._stream = self._stream.copy()
        if behind._blank is not None:
            text = without_leading_line_ends(behind._blank + text)
            behind._blank, text = (None, text) if text.strip() or is_last else (text, "")
        ids = behind._stream.push(text.encode()) + (behind._stream.close() if is_last else [])
        num_pending = behind._stream.num_pending + len(behind._blank or "")
        if num_pending > MAX_PENDING_CHARS:
            expected = f"a word that ends within {MAX_PENDING_CHARS} characters"
            raise InvalidRequest("text", expected, f"{num_pending} characters")
        if ids and max(ids) >= len(self._subwords):
            raise InvalidRequest("text", "text that the model has tokens for", shown(text))
        return [self._subwords.start + token_id for token_id in ids], behind
