"""Conversion of Qwen3-ASR's ids to the transcript, and to the language that it begins with.

language English<asr_text>Good morning.     ─►  Good morning.    language: english
language None<asr_text>                     ─►                   language unknown, such as for silence
Good morning.                               ─►  Good morning.    the request names the language
"""

from pathlib import Path

from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import TextCodec, TextReader, TextTokenizer, subword_codec
from stretto_qwen3_asr.family import AsrVocabulary

HEAD = "language "
NO_LANGUAGE = "none"
LONGEST_HEAD = 64  # characters; a longer text is no name of a language


class TranscriptReader:
    """Reader that leaves out the language before a transcript.

    Attributes:
        language: English name of the language in lower case; empty if it is unknown.
    """

    def __init__(self, reader: TextReader, asr_text: int):
        self._reader = reader
        self._asr_text = asr_text
        self._head: str | None = ""  # text that may be the name of the language; None in the transcript
        self.language = ""

    def push(self, token_id: int) -> str:
        if self._head is None:
            return self._reader.push(token_id)
        if token_id == self._asr_text:
            self._read_language(self._head + self._reader.end())
            return ""
        self._head += self._reader.push(token_id)
        return "" if self._is_head(self._head) else self._pop_head()

    def end(self) -> str:
        return self._pop_head() + self._reader.end()

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
    """Return the text codec of a checkpoint, which reads transcripts with the checkpoint's tokenizer."""
    vocabulary = AsrVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    subwords = subword_codec(TextTokenizer.at(checkpoint), range(vocabulary.num_ids))
    return TextCodec(lambda task: TranscriptReader(subwords.reader(task), vocabulary.asr_text), subwords.words)
