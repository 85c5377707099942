"""Words of complete and streamed texts for Kyutai TTS, divided as in the authors' `script_to_entries`."""

import re
from collections.abc import Sequence
from copy import copy
from pathlib import Path

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.text import SENTENCEPIECE_FILE, PlainTokenizer, TextCodec, sentencepiece_at
from stretto.records.prompt import SourceWord
from stretto_kyutai.kyutai_stt.family import FRAME_RATE
from stretto_kyutai.kyutai_tts.family import TtsVocabulary
from stretto_kyutai.kyutai_tts.mechanism.script import pack_word
from stretto_kyutai.moshi.reader import PieceReader

REPLACED = str.maketrans({"’": "'", "(": None, ")": None})
BORDER = re.compile(r'<break\s+time="([0-9]+(?:\.[0-9]*)?)s"\s*/?>|[\s:]+')
# The beginning of a break, at the end of a text that goes on.
OPEN_BREAK = re.compile(
    r'<(?:b(?:r(?:e(?:a(?:k(?:\s+(?:t(?:i(?:m(?:e(?:=(?:"(?:[0-9]+(?:\.[0-9]*)?(?:s(?:"\s*/?)?)?)?)?)?)?)?)?)?)?)?)?)?)?)?$'
)
# The name of a speaker at the start of a line, and an incomplete one at the end of a piece of text.
SPEAKER = re.compile(r"[^\S\n]*speaker[^\S\n]+([0-9]{1,3})[^\S\n]*:", re.IGNORECASE)
OPEN_SPEAKER = re.compile(
    r"[^\S\n]*(?:s(?:p(?:e(?:a(?:k(?:e(?:r(?:[^\S\n]+(?:[0-9]{1,3}[^\S\n]*)?)?)?)?)?)?)?)?)?", re.IGNORECASE
)
# text ids of the speakers, each of which precedes the first word of a turn
MAIN = 1
OTHER = 2
MAX_BREAK_S = 60.0
MAX_WORD_TOKENS = 64
MAX_WORD_CHARS = 1024


class WordStream:
    """Incremental conversion of one text to packed words. A word ends with a space, a break or the end of the text.

    If the text has turns, `Speaker 1:` or `Speaker 2:` at the start of a line begins a turn of that speaker. Speaker 1
    speaks the words before the first such line.

    Args:
        has_turns: True if the text has turns, so that the first word of a turn begins with the id of its speaker.

    Attributes:
        sources: Words that the last part of the text completed, and their positions in the text.
    """

    def __init__(self, tokenizer: PlainTokenizer, path: str = "text", has_turns: bool = False):
        self._tokenizer = tokenizer
        self._path = path
        self._unfinished = ""
        self._has_turns = has_turns
        self._begins_line = True
        self._line = ""  # beginning of a line that may name its speaker
        # speaker of the current turn, and of the last word
        self._speaker = MAIN
        self._spoken = 0
        self._num_chars = self._first = 0  # number of characters so far; place of `_unfinished` in the text
        self.sources: list[SourceWord] = []

    def after(self, text: str, is_last: bool) -> "tuple[list[int], WordStream]":
        """Append text without changing this stream; raise InvalidRequest if a word or a break is too long.

        Returns:
            Packed words that have become known, and the stream that continues after `text`.
        """
        extended = copy(self)
        ids = list[int]()
        extended.sources = []
        for speaker, start, turn in extended._turns(text, is_last):
            if speaker:
                ids += extended._words("", 0, is_last=True)
                extended._speaker = speaker
            ids += extended._words(turn, start, is_last=False)
        if is_last:
            ids += extended._words("", 0, is_last=True)
        return ids, extended

    def _turns(self, text: str, is_last: bool) -> list[tuple[int, int, str]]:
        """Append text, and return its complete parts as tuples: speaker (0 if no turn begins), position, text."""
        start = self._num_chars - len(self._line)
        self._num_chars += len(text)
        if not self._has_turns:
            return [(0, start, text)]
        parts = list[tuple[int, int, str]]()
        text = self._line + text
        self._line = ""
        while text:
            speaker = 0
            if self._begins_line:
                if (match := SPEAKER.match(text)) is not None:
                    speaker = self._numbered(match[1])
                    text = text[match.end() :]
                    start = start + match.end()
                elif not is_last and OPEN_SPEAKER.fullmatch(text):
                    self._line = text
                    break
            line, border, text = text.partition("\n")
            self._begins_line = bool(border)
            parts.append((speaker, start, line + border))
            start += len(line + border)
        return parts

    def _numbered(self, number: str) -> int:
        """Return the id of the speaker with this number; raise InvalidRequest unless it is 1 or 2."""
        if int(number) not in (MAIN, OTHER):
            raise InvalidRequest(self._path, f"speakers {MAIN} and {OTHER}", f"speaker {number}")
        return int(number)

    def _words(self, text: str, start: int, is_last: bool) -> list[int]:
        """Append text of a turn, which begins at `start`, and return the packed words that have become known."""
        self._first = self._first if self._unfinished else start
        ids = list[int]()
        unfinished = self._unfinished + text
        open_break = None if is_last else OPEN_BREAK.search(unfinished)
        stop = open_break.start() if open_break else len(unfinished)
        while (border := BORDER.search(unfinished, 0, stop)) is not None:
            ids += self._packed(unfinished[: border.start()])
            self._first += border.end()
            if border[1] is not None:
                ids += self._pause(border[1])
            unfinished = unfinished[border.end() :]
            stop = stop - border.end()
        if len(unfinished) > MAX_WORD_CHARS:
            raise InvalidRequest(
                self._path, f"words of at most {MAX_WORD_CHARS} characters", f"{len(unfinished)} characters"
            )
        if is_last:
            ids = ids + self._packed(unfinished)
            unfinished = ""
        self._unfinished = unfinished
        return ids

    def _packed(self, written: str) -> list[int]:
        """Return the ids of the word that begins at `_first`; none for an empty word."""
        word = written.translate(REPLACED)
        if not word:
            return []
        tokens = self._tokenizer.encode(word)
        if len(tokens) > MAX_WORD_TOKENS:
            raise InvalidRequest(self._path, f"words of at most {MAX_WORD_TOKENS} tokens", f"{len(tokens)} tokens")
        if self._has_turns and self._spoken != self._speaker:
            self._spoken = self._speaker
            tokens = [self._speaker, *tokens]
        self.sources.append(SourceWord(written, self._first, self._first + len(written)))
        return pack_word(tokens, len(tokens))

    def _pause(self, seconds: str) -> list[int]:
        """Return the packed ids of a break."""
        if float(seconds) > MAX_BREAK_S:
            raise InvalidRequest(self._path, f"breaks of at most {MAX_BREAK_S:g} s", f"{shown(seconds)} s")
        return pack_word([], round(float(seconds) * FRAME_RATE))


def open_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec with a checkpoint's SentencePiece model."""
    path = checkpoint / SENTENCEPIECE_FILE
    vocabulary = TtsVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = sentencepiece_at(path)
    tokens = tokenizer.tokens
    if len(tokens) != vocabulary.num_text_ids:
        raise CheckpointError(f"{path}: expected {vocabulary.num_text_ids} tokens, got {len(tokens)}")

    def no_words(token_ids: Sequence[int]) -> list[int | None]:
        return [None] * len(token_ids)  # words are marked as they are taken

    return TextCodec(
        lambda task: PieceReader(tokens), no_words, lambda: WordStream(tokenizer, has_turns=vocabulary.has_turns)
    )
