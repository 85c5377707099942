"""Text that comes in pieces, to the tokens of the whole text: a token leaves once nothing that follows can change it.

A byte-level BPE joins characters within a pre-token only, so the tokens of those that are complete stand. What may
still change: the last pre-token that is more than space, and the space behind it, which may belong to what follows or
join with it; a character that a combining mark may join, or move, in NFC; an added token that has begun.
"""

import codecs
import itertools
import unicodedata
from copy import copy

from stretto.errors import InvalidRequest, shown
from stretto.families.tokenizer import TextTokenizer
from stretto.preprocessing.subwords import without_leading_line_ends

MAX_PENDING_CHARS = 4096  # in which no word ends


class TextStream:
    """The tokens of one text. `push` takes UTF-8, cut anywhere; `close` says that there is no more."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="strict")
        self._pending = ""

    @property
    def num_pending(self) -> int:
        """How many characters there are whose tokens may still change."""
        return len(self._pending)

    def copy(self) -> "TextStream":
        """The same text, to go on with in another way."""
        other = TextStream(self._tokenizer)
        other._decoder.setstate(self._decoder.getstate())
        other._pending = self._pending
        return other

    def push(self, text: bytes) -> list[int]:
        """The tokens that `text` completes; UnicodeDecodeError where it goes on with what is no UTF-8."""
        self._pending += self._decoder.decode(text)
        ids, spelled, stops = self._split()
        stop = self._stable_stop()
        num_bytes = max((each for each in stops if each <= stop), default=0)
        ends = itertools.accumulate(map(len, spelled))
        self._pending = b"".join(spelled)[num_bytes:].decode()
        return [token_id for token_id, end in zip(ids, ends, strict=True) if end <= num_bytes]

    def close(self) -> list[int]:
        """The tokens that are left; UnicodeDecodeError where the text ends within a character."""
        self._pending += self._decoder.decode(b"", final=True)
        ids, self._pending = self._tokenizer.encode(self._pending), ""
        return ids

    def _split(self) -> tuple[list[int], list[bytes], list[int]]:
        """The tokens of what is pending, their bytes, and behind how many a pre-token that is more than space begins.

        What is pending is spelled from now on as the tokenizer has normalized it.
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
        """How many bytes of what is pending no combining mark and no added token that has begun can change."""
        text = self._pending
        starter = next((at for at in reversed(range(len(text))) if not unicodedata.combining(text[at])), 0)
        first = max(0, len(text) - self._tokenizer.longest_added)  # what is longer has no added token's beginning
        begun = next((at for at in range(first, len(text)) if self._tokenizer.begins_added(text[at:])), len(text))
        return len(text[: min(starter, begun)].encode())


class SubwordStream:
    """The ids of one text in a family's vocabulary, where text is `subwords`, without leading line ends."""

    def __init__(self, tokenizer: TextTokenizer, subwords: range):
        self._stream, self._subwords = TextStream(tokenizer), subwords
        self._blank: str | None = ""  # the space that the text has begun with; None after the first other character

    def after(self, text: str, is_last: bool) -> tuple[list[int], "SubwordStream"]:
        """The ids that `text` completes, and the stream behind it; this one stays as it is.

        InvalidRequest where too much has come without the end of a word, or what the model has no tokens for.
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
