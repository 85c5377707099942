"""Prompts of VibeVoice Realtime: the rows of a voice. The text is the track of the reply.

As in the authors' processor, white space around the text is removed, and a line end follows it. As in their programs,
typographic quotation marks become plain ones. Text may arrive in parts of any size: the tokens are those of the whole.
"""

from copy import copy
from pathlib import Path

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import (
    MAX_PENDING_CHARS,
    SILENT,
    TOKENIZER_FILE,
    TextCodec,
    TextStream,
    TextTokenizer,
    check_text,
)
from stretto_vibevoice.vibevoice_realtime.family import END_OF_TEXT, TextWindows, VibeVoiceRealtimeVocabulary

QUOTES = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"'})
LINE_END = "\n"


class IncrementalTokens:
    """Incremental tokenizer of one text (see `StreamedText`)."""

    def __init__(self, tokenizer: TextTokenizer):
        self._stream = TextStream(tokenizer)
        self._blank = ""
        self._has_begun = False

    def after(self, text: str, is_last: bool) -> tuple[list[int], "IncrementalTokens"]:
        """Return the tokens that `text` makes final, and the tokenizer for the text after it.

        This tokenizer stays unchanged. A word that is too long, or a whole text that is blank, raises InvalidRequest.
        """
        extended = copy(self)
        extended._stream = self._stream.copy()
        text = self._blank + text.translate(QUOTES)
        spoken = text.rstrip() if self._has_begun else text.strip()
        extended._has_begun = self._has_begun or bool(spoken)
        extended._blank = text[len(text.rstrip()) :] if extended._has_begun else ""
        if is_last and not extended._has_begun:
            raise InvalidRequest("text", "text of at least one character", shown(text))
        ids = extended._stream.push(spoken.encode())
        if is_last:
            ids += extended._stream.push(LINE_END.encode()) + extended._stream.close()
        num_pending = extended._stream.num_pending + len(extended._blank)
        if num_pending > MAX_PENDING_CHARS:
            expected = f"a word that ends within {MAX_PENDING_CHARS} characters"
            raise InvalidRequest("text", expected, f"{num_pending} characters")
        return ids, extended


class VibeVoiceRealtimeTemplate:
    """Prompt template of VibeVoice Realtime."""

    def __init__(self, family: Family, vocabulary: VibeVoiceRealtimeVocabulary, tokenizer: TextTokenizer):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._rows = {
            voice.name: stream0_rows(family.layout, [*range(first, first + voice.num_rows)])
            for voice, first in zip(vocabulary.voices, vocabulary.first_rows, strict=False)
        }

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of a voice, and the tokens of the text."""
        (piece,) = pieces
        assert piece.text is not None, task.name
        check_text(piece.text, piece.path, self._family.max_text_chars)
        rows = self._rows[voice or self._vocabulary.voices[0].name]
        track = tuple[int, ...]()
        if not manner.is_open:
            if not piece.text.strip():
                raise InvalidRequest(piece.path, "text of at least one character", shown(piece.text))
            ids, _ = IncrementalTokens(self._tokenizer).after(piece.text, is_last=True)
            self._check_length(ids, len(rows), piece.path)
            track = (*ids, END_OF_TEXT)
        return PromptRows(rows, track=track)

    def _check_length(self, ids: list[int], num_voice_rows: int, path: str) -> None:
        """Raise InvalidRequest if the text and the frames after its windows do not fit into a reply."""
        windows = self._family.track
        assert isinstance(windows, TextWindows)
        most = windows.max_text_ids(self._family.max_model_len - num_voice_rows - 1)
        if len(ids) > most:
            raise InvalidRequest(path, f"at most {most} tokens", f"{len(ids)} tokens")


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer."""
    vocabulary = VibeVoiceRealtimeVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    return VibeVoiceRealtimeTemplate(family, vocabulary, tokenizer)


def text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec for streamed text, or `SILENT` for random weights, which have no tokenizer."""
    if not (checkpoint / TOKENIZER_FILE).exists():
        return SILENT
    tokenizer = TextTokenizer.at(checkpoint)
    return TextCodec(SILENT.reader, SILENT.words, lambda: IncrementalTokens(tokenizer))
