"""Higgs Audio v3 prompts: the recording of a voice with its words, and the text to speak.

    [tts] [ref_text] words of the recording [ref_audio] recording [text] the text [audio] ─►

The part with the recording, or its words, may be missing. The recording's rows are delayed, with begin and end ids:

    stream 0   0 1 2 E E
    stream 1   B 0 1 2 E
    stream 2   B B 0 1 2

The layout follows sglang_omni/models/higgs_tts/text_tokenizer.py in https://github.com/sgl-project/sglang-omni. Tags in
the text, such as `<|emotion:elation|>`, are single tokens.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, check_codes, stream0_rows
from stretto.family.text import TextTokenizer, check_no_markers, check_text
from stretto.streams.layout import StreamLayout
from stretto_higgs_audio.higgs_audio_v3.family import AUDIO, NUM_MARKS, REF_AUDIO, REF_TEXT, TAG, TEXT, TTS

CONTROL = re.compile(r"<\|[^<>|]+\|>")
MIN_SAMPLES = 24_000  # the authors' servers complete a shorter recording with silence


def begin_ids(layout: StreamLayout) -> np.ndarray:
    """Return the begin id of each codebook, int64 [K]. Its end id is the next one."""
    return np.array([ids.stop for ids in layout.audio])


def audio_rows(layout: StreamLayout, codes: np.ndarray) -> np.ndarray:
    """Convert codes [K, T] to delayed rows, int32 [T + K - 1, K], with begin and end ids around each stream."""
    num_codebooks, num_frames = codes.shape
    begins = begin_ids(layout)
    rows = np.tile(begins + NUM_MARKS - 1, (num_frames + num_codebooks - 1, 1))
    for k, delay in enumerate(layout.delays):
        rows[:delay, k] = begins[k]
        rows[delay : delay + num_frames, k] = layout.audio[k].start + codes[k]
    return rows.astype(np.int32)


class HiggsAudioV3Template:
    """Higgs Audio v3 prompt template."""

    def __init__(self, family: Family, tokenizer: TextTokenizer, codec: Codec):
        self._family = family
        self._tokenizer = tokenizer
        self._tags = frozenset(family.tags)
        # Tokens that no text may contain. Those that the tokenizer marks as special are read as plain characters.
        others = {token_id: name for token_id, name in tokenizer.tokens.items() if CONTROL.fullmatch(name)}
        self._others = {token_id: name for token_id, name in others.items() if name not in self._tags}
        self._encoder = CachedEncoder(codec.encode)
        begins = begin_ids(family.layout)[1:]
        self._begins = np.tile(begins, (family.layout.max_delay, 1)).astype(np.int32)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the voice, if there is one, and of the last text."""
        *before, piece = pieces
        assert piece.text is not None, task.name
        parts = [self._marker(TTS), *self._voice(before)]
        parts += [self._marker(TEXT), self._words(piece), self._marker(AUDIO)]
        return PromptRows(np.concatenate(parts), delayed_tail=self._begins)

    def _voice(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Return the rows of a system turn: the words of the recording, if any, then the recording."""
        words = [piece for piece in pieces if piece.text is not None]
        recordings = [piece for piece in pieces if piece.text is None]
        if words and not recordings:
            raise InvalidRequest(words[0].path, "text only together with the audio of a voice", "text only")
        parts = [rows for piece in words for rows in (self._marker(REF_TEXT), self._words(piece))]
        for piece in recordings:
            parts += [self._marker(REF_AUDIO), audio_rows(self._family.layout, self._codes(piece))]
        return parts

    def _codes(self, piece: Piece) -> np.ndarray:
        """Return the codes of a recording, [K, T]."""
        if piece.codes is not None:
            check_codes(piece.codes, self._family, piece.path)
            return piece.codes
        assert piece.pcm is not None, piece.path
        missing = max(0, MIN_SAMPLES - len(piece.pcm))
        return self._encoder.encode(np.pad(piece.pcm, (0, missing)))

    def _words(self, piece: Piece) -> np.ndarray:
        """Return the rows of a text, in which tags are single tokens."""
        text = piece.text or ""
        path = piece.path
        ids = list[int]()
        check_text(text, path, self._family.max_text_chars)
        if not text.strip():
            raise InvalidRequest(path, "text with at least one non-space character", shown(text))
        at = 0
        for tag in TAG.finditer(text):
            if tag.group() not in self._tags:
                examples = ", ".join(self._family.tags[:3])  # all would leave no room in the message for the value
                raise InvalidRequest(path, f"tags of this model ({examples}, …)", shown(tag.group()))
            ids += [*self._ids(text[at : tag.start()], path), self._family.markers[tag.group()]]
            at = tag.end()
        return stream0_rows(self._family.layout, [*ids, *self._ids(text[at:], path)])

    def _ids(self, text: str, path: str) -> list[int]:
        ids = self._tokenizer.encode(text)
        check_no_markers(ids, self._others, path)
        return ids

    def _marker(self, name: str) -> np.ndarray:
        return stream0_rows(self._family.layout, [self._family.markers[name]])


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    return HiggsAudioV3Template(family, TextTokenizer.at(checkpoint), codec)
