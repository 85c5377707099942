"""Segments of OpusLM's prompts: rows of text, of audio and of a voice in ESPnet's layout.

    text    [text_bpe] words …
    audio   [codec_ssl] rows: stream k of row r is frame r - k, so T frames take T + 8 rows
    voice   [spk] rows of 500 frames, cut or filled up with pads on all streams

The first semantic token becomes a pad: ESPnet's preprocessor treats its 0 as a pad, so no model was trained on it.
Eight rows of pads separate the delayed streams of one segment from the next. Audio and voices end with such rows; text
is followed by them.
"""

import numpy as np

from stretto.codec.base import Codec
from stretto.errors import InvalidRequest
from stretto.families.base import Family
from stretto.families.opuslm.family import NUM_STREAMS, PAD, VOICE_FRAMES
from stretto.families.opuslm.heard_codes import HeardCodes
from stretto.families.opuslm.ssl_tokenizer import SslTokenizer
from stretto.preprocessing.conversation import Piece
from stretto.preprocessing.rows import check_codes, frame_rows, stream0_rows
from stretto.preprocessing.subwords import Subwords

GAP = NUM_STREAMS - 1


class SegmentWriter:
    """Writer of the segments of one checkpoint's prompts."""

    def __init__(self, family: Family, subwords: Subwords, codec: Codec, ssl: SslTokenizer | None):
        self.family, self._subwords = family, subwords
        self._heard = None if ssl is None else HeardCodes(codec, ssl)

    def ids(self, *ids: int) -> np.ndarray:
        """Return rows [n, 9] with `ids` on stream 0."""
        return stream0_rows(self.family.layout, list(ids))

    def task_id(self, *names: str) -> int:
        """Return the id of the first task of `names` in the checkpoint; InvalidRequest if it has none of them."""
        known = [self.family.markers[name] for name in names if name in self.family.markers]
        if not known:
            raise InvalidRequest("task", "a task that this checkpoint has a token for", f"one that needs <{names[0]}>")
        return known[0]

    def marker(self, name: str) -> np.ndarray:
        """Return the row that begins a segment: `codec_ssl`, `text_bpe` or `spk`."""
        return self.ids(self.family.markers[name])

    def piece(self, piece: Piece) -> np.ndarray:
        """Return the segment of a text or audio, with the pads that separate it from the next."""
        if piece.text is None:
            return self.audio(piece)
        return np.concatenate([self.text(piece), self.ids(*[PAD] * GAP)])

    def text(self, piece: Piece) -> np.ndarray:
        """Return the segment of a text, without pads after it."""
        assert piece.text is not None, piece.path
        return np.concatenate([self.marker("text_bpe"), self.ids(*self._subwords.ids(piece.text, piece.path))])

    def audio(self, piece: Piece) -> np.ndarray:
        """Return the segment of audio: marker and T + 8 rows."""
        return np.concatenate([self.marker("codec_ssl"), self._frames(self._codes(piece))])

    def voice(self, piece: Piece) -> np.ndarray:
        """Return the segment of a voice to speak in: marker and 508 rows."""
        rows = self._frames(self._codes(piece)[:, :VOICE_FRAMES])
        return np.concatenate([self.marker("spk"), rows, self.ids(*[PAD] * (VOICE_FRAMES + GAP - len(rows)))])

    def _frames(self, codes: np.ndarray) -> np.ndarray:
        rows = frame_rows(self.family.layout, codes, (PAD,) * NUM_STREAMS)
        rows[rows[:, 0] == self.family.layout.audio[0].start, 0] = PAD
        return rows

    def _codes(self, piece: Piece) -> np.ndarray:
        """Return codes [9, T]: a semantic code and eight codes of the codec per frame."""
        if piece.codes is not None:
            check_codes(piece.codes, self.family, piece.path)
            return piece.codes
        assert piece.pcm is not None, piece.path
        if self._heard is None:
            raise InvalidRequest(
                piece.path,
                "codes [9][T] in messages: the checkpoint has no ssl_tokenizer/ (docs/families.md, Requests)",
                "audio",
            )
        codes = self._heard.encode(piece.pcm)
        if codes.shape[1] == 0:
            raise InvalidRequest(piece.path, "audio of at least one frame (0.025 s)", f"{len(piece.pcm)} samples")
        return codes
