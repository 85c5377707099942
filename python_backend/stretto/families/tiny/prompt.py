"""Prompts of the bundled model: characters to speak, or audio rows to transcribe (see `family.py`).

This module also converts the model's text segments to readable text: phonemes, or a transcript.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stretto.errors import InvalidRequest, shown
from stretto.families.tiny import family as tiny
from stretto.families.tiny.family import (
    ASR,
    BEGIN_AUDIO,
    BEGIN_TEXT,
    CHARACTERS,
    FIRST_CHARACTER,
    FRAME_INDEX_BASE,
    LAYOUT,
    PHONEME_INDEX_BASE,
    TINY,
    TTS,
    VOICES,
)
from stretto.families.tiny.matching import matched
from stretto.families.tiny.recording import extract_speech
from stretto.families.tiny.text import in_ascii, normalise, words_of
from stretto.family.base import Family, Task
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, code_rows, stream0_rows
from stretto.family.source_words import source_words
from stretto.family.text import TextCodec, TextReader
from stretto_contract.scripts import other_script

if TYPE_CHECKING:
    from stretto.codecs.base import Codec

INDEX_STREAM = LAYOUT.num_output_streams
MAX_GROWTH = 4  # maximum number of ASCII characters per character of a text; some symbols become 10
MAX_FRAME_ROWS = FRAME_INDEX_BASE - PHONEME_INDEX_BASE - 1  # both index tables have the same size


class TinyTemplate:
    """Prompt template of the bundled model."""

    def __init__(self, codec: "Codec"):
        self._codec = codec

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for a text to speak in a voice, or for audio to transcribe."""
        (piece,) = pieces
        if piece.text is not None:
            assert voice is not None, task.name
            rows, words = self.speak(piece.text, voice, piece.path, manner.transliterates)
            return PromptRows(rows, words, sources=source_words(piece.text, words, _spoken))
        if piece.pcm is None:
            raise InvalidRequest(piece.path, "audio samples (this model does not accept codes)", "codes")
        speech = extract_speech(piece.pcm, self._codec.spec.sample_rate)
        if speech is None:
            return PromptRows(stream0_rows(LAYOUT, [ASR, BEGIN_AUDIO, BEGIN_TEXT]), has_empty_reply=True)
        return PromptRows(self.listen(self._codec.encode(speech)))

    def speak(
        self, text: str, voice: str, path: str = "text", transliterates: bool = False
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the rows [tts][voice] c a t [begin_text] and the normalised words, or raise InvalidRequest."""
        spoken = read_aloud(text, path, transliterates)
        ids = [TTS, VOICES[voice], *(FIRST_CHARACTER + CHARACTERS.index(character) for character in spoken), BEGIN_TEXT]
        return stream0_rows(LAYOUT, ids), words_of(spoken)

    def listen(self, codes: np.ndarray) -> np.ndarray:
        """Return the rows [asr][begin_audio] audio rows [begin_text] for codes [K, T]; number audio rows from 1."""
        audio = code_rows(LAYOUT, codes)
        assert len(audio) <= MAX_FRAME_ROWS, codes.shape
        audio[:, INDEX_STREAM] = FRAME_INDEX_BASE + 1 + np.arange(len(audio))
        head = stream0_rows(LAYOUT, [ASR, BEGIN_AUDIO])
        tail = stream0_rows(LAYOUT, [BEGIN_TEXT])
        return np.concatenate([head, audio, tail])


def read_aloud(text: str, path: str = "text", transliterates: bool = False) -> str:
    """Normalise `text` to lower-case words and the punctuation in CHARACTERS.

    Raises:
        InvalidRequest: If the text is too long, before or after conversion to ASCII or to words, contains letters of
            another script, or contains nothing that can be spoken.
    """
    limit = TINY.max_text_chars
    if len(text) > limit:
        raise InvalidRequest(path, f"at most {limit} characters", f"{len(text)} characters")
    if not transliterates and (other := other_script(text)) is not None:
        expected = "English in Latin script, or options.transliterate=true to transliterate other scripts"
        raise InvalidRequest(path, expected, f"{other[0]} in {shown(other[1])}")
    if (length := len(in_ascii(text))) > MAX_GROWTH * limit:  # checked before the characters are parsed
        raise InvalidRequest(
            path, f"at most {MAX_GROWTH * limit} characters once converted to ASCII", f"{length} characters"
        )
    spoken = normalise(text, CHARACTERS)
    if not words_of(spoken):
        raise InvalidRequest(path, "text with a word that can be spoken", shown(text))
    if len(spoken) > limit:
        raise InvalidRequest(path, f"at most {limit} characters once written out in words", f"{len(spoken)} characters")
    return spoken


@lru_cache(maxsize=4096)
def _spoken(word: str) -> tuple[str, ...]:
    """Return the spoken words for a word of a text, ignoring the words around it."""
    return words_of(normalise(word, CHARACTERS))


def open_template(family: Family, checkpoint: Path, codec: "Codec", device: str) -> Template:
    """Return the template that uses the bundled codec."""
    return TinyTemplate(codec)


PAUSE = tiny.FIRST_PHONEME + tiny.PHONEMES.index("pau")


class _WordReader:
    """Reader that joins tokens to words and returns the text word by word, separated by spaces."""

    def __init__(self, joiner: str, first: int | None = None):
        self._joiner = joiner
        self._waits_for = first
        self._word: list[str] = []
        self._has_text = False

    def push(self, token_id: int) -> str:
        if self._waits_for is not None:
            if token_id == self._waits_for:
                self._waits_for = None
            return ""
        if token_id in tiny.SPACE:
            return self.end()
        if token_id == PAUSE:
            word = self.end()
            self._word = [","]
            return word + self.end()
        self._word.append(_spelling(token_id))
        return ""

    def end(self) -> str:
        if not self._word:
            return ""
        text = " " * self._has_text + self._joiner.join(self._word)
        self._word = []
        self._has_text = True
        return text


def _spelling(token_id: int) -> str:
    if token_id in tiny.SPOKEN:
        return tiny.PHONEMES[token_id - tiny.FIRST_PHONEME]
    return tiny.CHARACTERS[token_id - tiny.FIRST_CHARACTER]


def _tiny_reader(task: str) -> TextReader:
    """Return a reader for a task.

    Phonemes are written as `dh-ax b-er-ch`, with `,` for a pause. For a transcript, only the characters after the
    separator are returned.
    """
    return _WordReader("", tiny.SEPARATOR) if task == "asr" else _WordReader("-")


def _tiny_words(token_ids: Sequence[int]) -> list[int | None]:
    words: list[int | None] = []
    count = 0
    is_inside = False
    for token_id in token_ids:
        if token_id not in tiny.SPOKEN or token_id == PAUSE:
            count = count + is_inside
            is_inside = False
            if token_id == PAUSE:
                words.append(None)
        else:
            words.append(count)
            is_inside = True
    return words


def _tiny_match(token_ids: Sequence[int], words: Sequence[str]) -> list[int | None]:
    """Return the index in `words` of each spoken token, or None, found by comparing phonemes with letters."""
    entries = [token_id for token_id in token_ids if token_id in tiny.SPOKEN]
    owners = _tiny_words(token_ids)
    spoken: dict[int, list[str]] = {}
    for token_id, owner in zip(entries, owners, strict=True):
        if owner is not None:
            spoken.setdefault(owner, []).append(_spelling(token_id))
    matching = matched(list(spoken.values()), words)
    return [None if owner is None else matching[owner] for owner in owners]


TEXT_CODEC = TextCodec(_tiny_reader, _tiny_words, match=_tiny_match)


def open_text_codec(family: Family, checkpoint: Path) -> TextCodec:
    """Return the text codec, which reads no files."""
    return TEXT_CODEC
