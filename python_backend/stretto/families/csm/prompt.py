"""CSM prompts: each turn is `[bos][n]words[eos]`, where n is the speaker's number, and the frames of the speech.

    [bos][1]Hi[eos] frames … zeros  [bos][0]Hello[eos] frames … zeros  [bos][0]Bye[eos]

A frame of zeros follows the frames of a turn, as if the model itself had ended it. The last turn is the text to speak,
without audio. Earlier turns may be text without audio, but not audio without text, because the model was not trained on
that. The layout follows the chat template of `sesame/csm-1b`, and generator.py in https://github.com/SesameAILabs/csm.
"""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.families.csm.family import END_CODE, VOICES
from stretto.family.base import Family, Task
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, code_rows, codes_of, stream0_rows
from stretto.family.text import Subwords, TextTokenizer


@dataclass(frozen=True)
class CsmTemplate:
    """CSM prompt template."""

    family: Family
    subwords: Subwords
    codec: Codec

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows for the earlier turns and the text to speak; `voice` is the number of the speaker."""
        assert voice is not None, task.name
        other = VOICES[1 - VOICES.index(voice)]
        turns = [list(turn) for _, turn in groupby(pieces, lambda piece: piece.path.rpartition(".")[0])]
        spoken = turns[-1]
        if len(spoken) > 1 or spoken[0].text is None:
            raise InvalidRequest(spoken[-1].path, "only text to speak in the last turn", "audio")
        return PromptRows(
            np.concatenate([self._turn(turn, voice if turn[0].role == task.answers else other) for turn in turns])
        )

    def _turn(self, turn: list[Piece], speaker: str) -> np.ndarray:
        """Return the rows of a turn: words followed by audio, whatever their order in the request."""
        words = [piece for piece in turn if piece.text is not None]
        if not words:
            raise InvalidRequest(turn[0].path, "audio together with its transcript", "audio only")
        recordings = (self._audio(piece) for piece in turn if piece.text is None)
        return np.concatenate([self._text(words[0], speaker), *recordings])

    def _text(self, piece: Piece, speaker: str) -> np.ndarray:
        if not piece.text:
            raise InvalidRequest(piece.path, "text of at least one character", "''")
        markers = self.family.markers
        ids = self.subwords.ids(f"[{speaker}]{piece.text}", piece.path)
        return stream0_rows(self.family.layout, [markers["begin"], *ids, markers["end"]])

    def _audio(self, piece: Piece) -> np.ndarray:
        codes = codes_of(piece, self.family, self.codec.encode)
        return code_rows(self.family.layout, np.pad(codes, ((0, 0), (0, 1)), constant_values=END_CODE))


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and Mimi weights."""
    return CsmTemplate(family, Subwords(TextTokenizer.at(checkpoint), family), codec)
