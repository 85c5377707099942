"""Text in prompts and replies: its limits, incremental tokenization, and conversion of ids back to text."""

import codecs
import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tokenizers import Tokenizer, decoders

from stretto.errors import CheckpointError, InvalidRequest, is_panic, shown
from stretto.family.base import Family
from stretto.family.plugin import plugin
from stretto.records.chunk import Continuation, WordMark
from stretto.untrusted_files import MAX_TEXT_BYTES, regular_file
from stretto_contract.transcripts import Passage

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"


class TextTokenizer:
    """Byte-level BPE tokenizer, as in Qwen 3, OLMo 2 and SmolLM 2. Ids start at 0.

    A family adds the offset of its text ids.

    Args:
        spells_bytes: True if every token must be convertible to bytes, which requires a byte-level tokenizer. False for
            a model that generates no text, which may have any kind of tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, spells_bytes: bool = True):
        if spells_bytes and not isinstance(tokenizer.decoder, decoders.ByteLevel):
            got = type(tokenizer.decoder).__name__ if tokenizer.decoder else "none"
            raise CheckpointError(f"{TOKENIZER_FILE}: expected a byte-level decoder, got {got}")
        check_ids(tokenizer.get_vocab(), TOKENIZER_FILE)
        tokenizer.encode_special_tokens = True  # treat "<|im_end|>" in a request as plain characters
        self._tokenizer = tokenizer
        self._spelled: dict[int, bytes] = {}

    @classmethod
    def at(cls, checkpoint: Path, spells_bytes: bool = True) -> "TextTokenizer":
        """Load the tokenizer in a checkpoint folder; raise CheckpointError if it is missing or unreadable."""
        path = checkpoint / TOKENIZER_FILE
        try:
            tokenizer = Tokenizer.from_file(str(regular_file(path, MAX_TEXT_BYTES)))
        except BaseException as error:  # the library raises no narrower class
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise CheckpointError(f"{path}: cannot be loaded as a tokenizer: {error}") from error
        return cls(tokenizer, spells_bytes)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`. No special ids are added; special-token names are treated as plain text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_words(self, text: str) -> tuple[list[int], list[int | None]]:
        """Return the token ids of `text`, and for each token the index of its pre-token."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.word_ids

    def begins_added(self, text: str) -> bool:
        """Return True if `text` is a proper prefix of the name of a (non-special) added token."""
        return any(name.startswith(text) and len(name) > len(text) for name in self._added_names)

    @cached_property
    def longest_added(self) -> int:
        """Length of the longest name of a (non-special) added token, in characters."""
        return max(map(len, self._added_names), default=0)

    @cached_property
    def _added_names(self) -> tuple[str, ...]:
        return tuple(name.decode() for name in self._added.values() if name)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens contribute no text."""
        return self._tokenizer.decode(list(token_ids))

    @property
    def tokens(self) -> dict[int, str]:
        """Token string of each id, in the BPE alphabet; for an added token, its name."""
        return {token_id: token for token, token_id in self._tokenizer.get_vocab().items()}

    def check_size(self, num_tokens: int, checkpoint: Path) -> None:
        """Raise CheckpointError, mentioning `checkpoint`, if an id is `num_tokens` or greater."""
        size = max(self.tokens, default=-1) + 1
        if size > num_tokens:
            raise CheckpointError(f"{checkpoint}: expected at most {num_tokens} tokens, got {size}")

    def bytes_of(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token, which may end within a character; empty for special and unused ids."""
        spelled = self._spelled.get(token_id)
        if spelled is None:
            spelled = self._spelled[token_id] = self._spell(token_id)
        return spelled

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else bytes(BYTE_OF[character] for character in token)

    @cached_property
    def _added(self) -> dict[int, bytes]:
        """UTF-8 bytes of the tokens added to the BPE; empty for special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id: b"" if token.special else token.content.encode() for token_id, token in added.items()}


MAX_UNUSED_IDS = 1 << 16  # ids below the largest one that no token has; published tokenizers have few


def check_ids(vocabulary: Mapping[str, Any], path: Path | str) -> None:
    """Raise CheckpointError if a token's id is no integer, negative or too large, because tables have a row per id."""
    stop = len(vocabulary) + MAX_UNUSED_IDS
    for token, token_id in vocabulary.items():
        if type(token_id) is not int or not 0 <= token_id < stop:
            raise CheckpointError(f"{path}: {shown(token)}: expected an id in [0, {stop}), got {shown(token_id)}")


class PlainTokenizer(Protocol):
    """Tokenizer for a model that generates no text. Ids start at 0."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`; no special ids are added."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        ...

    @property
    def tokens(self) -> dict[int, str]:
        """Token string of each id."""
        ...


class SentencePieceTokenizer:
    """SentencePiece tokenizer of a `tokenizer.model`, by the original library, which resolves ties in its own way."""

    def __init__(self, model: bytes):
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=model)
        ids = range(self._processor.get_piece_size())
        self.tokens: dict[int, str] = {token_id: self._processor.id_to_piece(token_id) for token_id in ids}

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; control tokens contribute no text."""
        return self._processor.decode(list(token_ids))


def plain_tokenizer(folder: Path) -> PlainTokenizer:
    """Load tokenizer.json, or tokenizer.model if only that exists; raise CheckpointError if it is unreadable."""
    path = folder / SENTENCEPIECE_FILE
    if (folder / TOKENIZER_FILE).exists() or not path.exists():
        return TextTokenizer.at(folder, spells_bytes=False)
    return sentencepiece_at(path)


def sentencepiece_at(path: Path) -> "SentencePieceTokenizer":
    """Load a SentencePiece file; raise CheckpointError if it is unreadable."""
    model = regular_file(path, MAX_TEXT_BYTES).read_bytes()
    try:
        return SentencePieceTokenizer(model)
    except Exception as error:  # SentencePiece documents only RuntimeError; a piece may not be UTF-8
        raise CheckpointError(f"{path}: cannot be loaded as a SentencePiece model: {error}") from error


def _bytes_by_character() -> dict[str, int]:
    """Map each character of the byte-level BPE alphabet to its byte.

    Bytes that are printable in Latin-1 are represented by their own character, and the others by U+0100 onwards.
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF = _bytes_by_character()


LEADING_LINE_ENDS = re.compile(r"\s*[\r\n]")


def without_leading_line_ends(text: str) -> str:
    """Return `text` without leading blank lines; the indentation of its first line is kept."""
    blank = LEADING_LINE_ENDS.match(text)
    return text[blank.end() :] if blank else text


def check_text(text: str, path: str, max_chars: int) -> None:
    """Raise InvalidRequest if a text is too long or contains lone surrogates."""
    if len(text) > max_chars:
        raise InvalidRequest(path, f"at most {max_chars} characters", f"{len(text)} characters")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(path, "text without lone surrogates", shown(text))


def check_no_markers(ids: Sequence[int], markers: Mapping[int, str], path: str) -> None:
    """Raise InvalidRequest if a text contains a marker.

    A tokenizer recognises a marker in a text unless the release declares it special.
    """
    for token_id in ids:
        if token_id in markers:
            raise InvalidRequest(path, "none of the model's markers", markers[token_id])


class Subwords:
    """Converter of text to a family's ids: tokenizer ids plus the start of `Family.subwords`."""

    def __init__(self, tokenizer: TextTokenizer, family: Family):
        assert family.subwords is not None, family.name
        self._tokenizer = tokenizer
        self._ids = family.subwords
        self._max_chars = family.max_text_chars

    def ids(self, text: str, path: str) -> list[int]:
        """Return the family's ids of a text; raise InvalidRequest if it is empty, too long or cannot be encoded."""
        check_text(text, path, self._max_chars)
        ids = self._tokenizer.encode(text)
        if not ids:
            raise InvalidRequest(path, "text of at least one character", shown(text))
        if max(ids) >= len(self._ids):
            raise InvalidRequest(path, "text that the model has tokens for", shown(text))
        return [self._ids.start + token_id for token_id in ids]


MAX_PENDING_CHARS = 4096  # maximum length of a text in which no word ends


class TextStream:
    """Incremental tokenizer of one text. `push` accepts UTF-8 split at any byte; `close` ends the text."""

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
        """Return the tokens that became final with `text`; raise UnicodeDecodeError if the bytes are invalid UTF-8."""
        self._pending += self._decoder.decode(text)
        ids, spelled, stops = self._split()
        stop = self._stable_stop()
        num_bytes = max((offset for offset in stops if offset <= stop), default=0)
        ends = itertools.accumulate(map(len, spelled))
        self._pending = b"".join(spelled)[num_bytes:].decode()
        return [token_id for token_id, end in zip(ids, ends, strict=True) if end <= num_bytes]

    def close(self) -> list[int]:
        """Return the remaining tokens; raise UnicodeDecodeError if the text ends within a character."""
        self._pending += self._decoder.decode(b"", final=True)
        ids = self._tokenizer.encode(self._pending)
        self._pending = ""
        return ids

    def _split(self) -> tuple[list[int], list[bytes], list[int]]:
        """Split the pending text; return its tokens, their bytes, and the byte offsets of pre-tokens other than spaces.

        The pending text is replaced by its normalised form.
        """
        ids, words = self._tokenizer.encode_words(self._pending)
        spelled = [self._tokenizer.bytes_of(token_id) for token_id in ids]
        self._pending = b"".join(spelled).decode()
        starts = []
        at = 0
        for _, tokens in itertools.groupby(zip(words, spelled, strict=True), key=lambda pair: pair[0]):
            word = b"".join(text for _, text in tokens)
            if word.decode().strip():
                starts.append(at)
            at += len(word)
        return ids, spelled, starts

    def _stable_stop(self) -> int:
        """Return how many pending bytes are final even if a combining mark or the rest of an added token follows."""
        text = self._pending
        starter = next((at for at in reversed(range(len(text))) if not unicodedata.combining(text[at])), 0)
        first = max(0, len(text) - self._tokenizer.longest_added)  # a longer suffix cannot begin an added token
        begun = next((at for at in range(first, len(text)) if self._tokenizer.begins_added(text[at:])), len(text))
        return len(text[: min(starter, begun)].encode())


class SubwordStream:
    """Incremental conversion of one text to a family's ids, without leading line ends."""

    def __init__(self, tokenizer: TextTokenizer, subwords: range):
        self._stream = TextStream(tokenizer)
        self._subwords = subwords
        self._blank: str | None = ""  # leading space; None once a non-space character has been read

    def after(self, text: str, is_last: bool) -> tuple[list[int], "SubwordStream"]:
        """Return the ids that become final with `text`, and a new stream that continues after it.

        Raises:
            InvalidRequest: If a word is too long, or the model has no token for part of the text.
        """
        extended = copy(self)
        extended._stream = self._stream.copy()
        if extended._blank is not None:
            text = without_leading_line_ends(extended._blank + text)
            extended._blank, text = (None, text) if text.strip() or is_last else (text, "")
        ids = extended._stream.push(text.encode()) + (extended._stream.close() if is_last else [])
        num_pending = extended._stream.num_pending + len(extended._blank or "")
        if num_pending > MAX_PENDING_CHARS:
            expected = f"a word that ends within {MAX_PENDING_CHARS} characters"
            raise InvalidRequest("text", expected, f"{num_pending} characters")
        if ids and max(ids) >= len(self._subwords):
            raise InvalidRequest("text", "text that the model has tokens for", shown(text))
        return [self._subwords.start + token_id for token_id in ids], extended


class StreamedText(Protocol):
    """Incremental conversion of one streamed text to a family's ids.

    Attributes:
        sources: Words that the last part of the text completed, if the model itself reports their times.
    """

    def after(self, text: str, is_last: bool) -> "tuple[list[int], StreamedText]":
        """Append text without changing this stream; see `SubwordStream.after`."""
        ...


class TextReader(Protocol):
    """Incremental conversion of one generated text segment to readable text."""

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` makes readable, or an empty string if it completes no character or word."""
        ...

    def end(self) -> str:
        """Return the remaining text at the end of the segment."""
        ...


@runtime_checkable
class TimedReader(TextReader, Protocol):
    """Reader of a transcript whose tokens have times in the recording."""

    def pop_marks(self) -> list[WordMark]:
        """Remove and return the words whose times have become known since the last call."""
        ...

    def pop_begun(self) -> list[WordMark]:
        """Remove and return the words that are complete since the last call; their ends are not known yet."""
        ...

    @property
    def num_transcribed(self) -> int:
        """Number of frames of the recording whose text is complete."""
        ...


@runtime_checkable
class LanguageReader(TextReader, Protocol):
    """Reader of a transcript whose model names the language.

    Attributes:
        language: English name of the language in lower case; empty if it is unknown.
    """

    language: str


@runtime_checkable
class ContinuingReader(TextReader, Protocol):
    """Reader of a transcript that continues an earlier one."""

    def begin(self, text: str) -> None:
        """Read the beginning of the reply, which the prompt contains; the next `push` or `end` returns it, too."""
        ...

    def continuation(self) -> Continuation | None:
        """Return the part of the text that a request for a longer recording keeps; None without `begin`."""
        ...


@runtime_checkable
class PassageReader(TextReader, Protocol):
    """Reader of a transcript in which the model states the times and the speaker of each passage."""

    def pop_passages(self) -> list[Passage]:
        """Remove and return the passages that are complete since the last call."""
        ...


@dataclass(frozen=True)
class TextCodec:
    """Conversion between text and a family's ids.

    Attributes:
        words: Function that returns the word index of each spoken token in a text segment, or None for a pause.
        match: The same if the segment and the text to speak have different numbers of words. It also gets the words to
            speak, to which its indices refer, and returns None for tokens of other words. None if there is no such
            function.
        stream: Function that creates a converter of streamed text to ids; None if there is no tokenizer.
    """

    reader: Callable[[str], TextReader]
    words: Callable[[Sequence[int]], list[int | None]]
    stream: Callable[[], StreamedText] | None = None
    match: Callable[[Sequence[int], Sequence[str]], list[int | None]] | None = None

    def matched(self, token_ids: Sequence[int], words: Sequence[str]) -> list[int | None]:
        """Return the index in `words`, the words to speak, of each spoken token; None for a pause or another word."""
        indices = self.words(token_ids)
        if len({word for word in indices if word is not None}) == len(words):
            return indices
        return [None] * len(indices) if self.match is None else self.match(token_ids, words)

    def spelled(self, task: str, token_ids: Sequence[int]) -> str:
        """Return the text of a word's tokens, without white space at its ends."""
        reader = self.reader(task)
        return ("".join(map(reader.push, token_ids)) + reader.end()).strip()


class _SubwordReader:
    """Reader that returns a character once its last byte has been generated."""

    def __init__(self, tokenizer: TextTokenizer, subwords: range):
        self._tokenizer = tokenizer
        self._subwords = subwords
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        if token_id not in self._subwords:
            return ""
        return self._decoder.decode(self._tokenizer.bytes_of(token_id - self._subwords.start))

    def end(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class _SilentReader:
    """Reader for families whose text is not readable."""

    def push(self, token_id: int) -> str:
        return ""

    def end(self) -> str:
        return ""


def _no_words(token_ids: Sequence[int]) -> list[int | None]:
    return [None] * len(token_ids)


SILENT = TextCodec(lambda task: _SilentReader(), _no_words)


def subword_codec(tokenizer: TextTokenizer, subwords: range) -> TextCodec:
    """Return the text codec for a family whose text ids are tokenizer ids plus `subwords.start`."""
    return TextCodec(
        lambda task: _SubwordReader(tokenizer, subwords), _no_words, lambda: SubwordStream(tokenizer, subwords)
    )


def load_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Load the text codec of a family, which uses the tokenizer in the checkpoint folder.

    A checkpoint with random weights has no tokenizer; its text codec returns no text. If the tokenizer cannot be read,
    raise CheckpointError.
    """
    if family.subwords is None or not (checkpoint / TOKENIZER_FILE).exists():
        family_plugin = plugin(family.name)
        return family_plugin.text_codec(family, checkpoint) if family_plugin and family_plugin.text_codec else SILENT
    return subword_codec(TextTokenizer.at(checkpoint), family.subwords)
