"""VALL-E prompts: `[sos][task][text] words … [spk] frames … [codec]`, with ESPnet's pads in all rows but the last.

A voice has a fixed number of frames. Longer recordings are cut, and shorter ones are padded, as in training.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.families.valle.family import PAD, SOS_EOS, ValleVocabulary
from stretto.family.base import Family, Task
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import Subwords, TextTokenizer


class ValleTemplate:
    """VALL-E prompt template."""

    def __init__(self, family: Family, known: ValleVocabulary, subwords: Subwords, codec: Codec):
        self._family = family
        self._known = known
        self._subwords = subwords
        self._codec = codec

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows for the text of the last piece, to be spoken in the voice of the piece before it."""
        *voices, text = pieces
        assert text.text is not None, task.name
        if not voices:
            raise InvalidRequest("messages", "a system turn with a recording of the voice", "none")
        known = self._known
        words = self._subwords.ids(text.text, text.path)
        head = self._rows(SOS_EOS, known.task, known.text_marker, *words, known.voice_marker)
        start = stream0_rows(self._family.layout, [known.codec_marker])
        return PromptRows(np.concatenate([head, self._voice(voices[0]), start]))

    def _rows(self, *ids: int) -> np.ndarray:
        """Return rows [n, K] with `ids` on stream 0; the other streams have ESPnet's pad, which has an embedding."""
        rows = np.full((len(ids), self._known.num_codebooks), PAD, np.int32)
        rows[:, 0] = ids
        return rows

    def _voice(self, piece: Piece) -> np.ndarray:
        """Return the rows of a voice, [voice_frames, K]."""
        known = self._known
        codes = self._codes(piece)[:, : self._known.voice_frames]
        rows = np.full((known.voice_frames, known.num_codebooks), PAD, np.int32)
        rows[: codes.shape[1]] = codes.T + known.codec + np.arange(known.num_codebooks) * known.codebook_size
        return rows

    def _codes(self, piece: Piece) -> np.ndarray:
        """Return the codes [K, T] of a piece; raise InvalidRequest if they are not frames of the codec."""
        if piece.codes is None:
            assert piece.pcm is not None, piece.path
            return self._codec.encode(piece.pcm)
        known = self._known
        codes = piece.codes
        most = int(self._family.max_audio_s * self._family.frame_rate)
        if len(codes) != known.num_codebooks:
            raise InvalidRequest(piece.path, f"{known.num_codebooks} streams", f"{len(codes)} streams")
        if codes.shape[1] > most:
            raise InvalidRequest(piece.path, f"at most {most} frames", f"{codes.shape[1]} frames")
        if codes.max() >= known.codebook_size:
            raise InvalidRequest(piece.path, f"codes in [0, {known.codebook_size})", codes.max())
        return codes


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and the ESPnet codec."""
    known = ValleVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    return ValleTemplate(family, known, Subwords(TextTokenizer.at(checkpoint), family), codec)
