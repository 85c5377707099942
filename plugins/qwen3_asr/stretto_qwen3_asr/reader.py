"""Conversion of Qwen3-ASR's ids to the transcript and its language, with which a reply begins.

language English<asr_text>Good morning.     ─►  Good morning.    language: english
language None<asr_text>                     ─►                   language unknown, such as for silence
Good morning.                               ─►  Good morning.    the request names the language

When a transcript is continued for a longer recording, its last tokens are dropped, as in the authors' streaming:

language English<asr_text>Good morning, how are you?     ─►  language English<asr_text>Good morning
"""

import codecs
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import TextCodec, TextReader, TextTokenizer, subword_codec
from stretto.records.chunk import Continuation
from stretto_qwen3_asr.family import AsrVocabulary

HEAD = "language "
NO_LANGUAGE = "none"
LONGEST_HEAD = 64  # characters; a longer text is not the name of a language
NUM_OPEN_TOKENS = 5  # at the end of a transcript, which a longer recording may change
REPLACEMENT = "\ufffd"  # replaces bytes that are not a character


class TranscriptReader:
    """Reader that leaves out the language before a transcript.

    Attributes:
        language: English name of the language in lower case; empty if it is unknown.
    """

    def __init__(self, open_reader: Callable[[], TextReader], asr_text: int, tokenizer: TextTokenizer):
        self._open_reader = open_reader
        self._reader = open_reader()
        self._asr_text = asr_text
        self._tokenizer = tokenizer
        self._head: str | None = ""  # text that may be the name of the language; None in the transcript
        self._beginning: str | None = None
        self._ids: list[int] = []  # ids of the beginning and of the reply
        self._unsent = ""  # text of the beginning
        self.language = ""

    def begin(self, text: str) -> None:
        self._beginning = text
        self._unsent = "".join(map(self.push, self._tokenizer.encode(text)))

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._pop_unsent() + self._read(token_id)

    def end(self) -> str:
        return self._pop_unsent() + self._pop_head() + self._reader.end()

    def continuation(self) -> Continuation | None:
        """Return the transcript without its last tokens and without an incomplete character; None without `begin`.

        The result includes the whole beginning of this reply, so that clients never have to remove text.
        """
        if self._beginning is None:
            return None
        ids = self._tokenizer.encode(self._tokenizer.decode(self._ids))
        text = self._whole_characters(ids[: max(0, len(ids) - NUM_OPEN_TOKENS)])
        if not text.startswith(self._beginning):
            text = self._beginning
        reader = TranscriptReader(self._open_reader, self._asr_text, self._tokenizer)
        return Continuation(text, len("".join(map(reader.push, self._tokenizer.encode(text)))))

    def _whole_characters(self, ids: Sequence[int]) -> str:
        """Return the text of as many first tokens as give only complete and valid characters."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = ""
        pending = ""
        for token_id in ids:
            pending += decoder.decode(self._tokenizer.bytes_of(token_id))
            if REPLACEMENT in pending:
                break
            if not decoder.getstate()[0]:
                text += pending
                pending = ""
        return text

    def _pop_unsent(self) -> str:
        text = self._unsent
        self._unsent = ""
        return text

    def _read(self, token_id: int) -> str:
        if self._head is None:
            return self._reader.push(token_id)
        if token_id == self._asr_text:
            self._read_language(self._head + self._reader.end())
            return ""
        self._head += self._reader.push(token_id)
        return "" if self._is_head(self._head) else self._pop_head()

    def _read_language(self, head: str) -> None:
        self._head = None
        name = head.strip().lower().removeprefix(HEAD).strip()
        self.language = "" if name == NO_LANGUAGE else name

    def _is_head(self, text: str) -> bool:
        begun = text.lstrip().lower()
        return len(text) <= LONGEST_HEAD and (begun.startswith(HEAD) or HEAD.startswith(begun))

    def _pop_head(self) -> str:
        head = self._head or ""
        self._head = None
        return head


def open_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec of a checkpoint, which reads transcripts with its tokenizer."""
    vocabulary = AsrVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    subwords = subword_codec(tokenizer, range(vocabulary.num_ids))

    def open_reader(task: str) -> TextReader:
        return TranscriptReader(partial(subwords.reader, task), vocabulary.asr_text, tokenizer)

    return TextCodec(open_reader, subwords.words)
