"""CSM prompts: each turn is `[bos][n]words[eos]`, where n is the speaker's number, and the frames of the speech.

    [bos][1]Hi[eos] frames … zeros  [bos][0]Hello[eos] frames … zeros  [bos][0]Bye[eos]

A frame of zeros follows the frames of a turn, as if the model itself had ended it. The last turn is the text to speak,
without audio. Earlier turns may be text without audio, but not audio without text, because the model was not trained on
that. The layout follows the chat template of `sesame/csm-1b`, and generator.py in https://github.com/SesameAILabs/csm.
"""

from itertools import groupby
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.families.csm.family import END_CODE, VOICES
from stretto.family.base import Family, Task
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, check_codes, code_rows, stream0_rows
from stretto.family.text import Subwords, TextTokenizer


class CsmTemplate:
    """CSM prompt template."""

    def __init__(self, family: Family, subwords: Subwords, codec: Codec):
        self._family = family
        self._subwords = subwords
        self._codec = codec

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows for the earlier turns and the text to speak; `voice` is the number of the speaker."""
        assert voice is not None, task.name
        other = VOICES[1] if voice == VOICES[0] else VOICES[0]
        turns = [list(turn) for _, turn in groupby(pieces, lambda piece: piece.path.rpartition(".")[0] or piece.path)]
        spoken = turns[-1]
        if len(spoken) > 1 or spoken[0].text is None:
            raise InvalidRequest(spoken[-1].path, "only text to speak in the last turn", "audio")
        says = "assistant" if task.answers == "assistant" else "user"
        parts = [self._turn(turn, voice if turn[0].role == says else other) for turn in turns]
        return PromptRows(np.concatenate(parts))

    def _turn(self, turn: list[Piece], speaker: str) -> np.ndarray:
        """Return the rows of a turn: words followed by audio, whatever their order in the request."""
        words = [piece for piece in turn if piece.text is not None]
        if not words:
            raise InvalidRequest(turn[0].path, "audio together with its transcript", "audio only")
        rows = [self._text(words[0], speaker)]
        return np.concatenate([*rows, *(self._audio(piece) for piece in turn if piece.text is None)])

    def _text(self, piece: Piece, speaker: str) -> np.ndarray:
        begin, end = (self._family.markers[name] for name in ("begin", "end"))
        assert piece.text is not None
        if not piece.text:
            raise InvalidRequest(piece.path, "text of at least one character", "''")
        ids = self._subwords.ids(f"[{speaker}]{piece.text}", piece.path)
        return stream0_rows(self._family.layout, [begin, *ids, end])

    def _audio(self, piece: Piece) -> np.ndarray:
        if piece.codes is not None:
            check_codes(piece.codes, self._family, piece.path)
        codes = piece.codes if piece.codes is not None else self._codec.encode(_samples(piece))
        return code_rows(self._family.layout, np.pad(codes, ((0, 0), (0, 1)), constant_values=END_CODE))


def _samples(piece: Piece) -> np.ndarray:
    assert piece.pcm is not None, piece.path
    return piece.pcm


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and Mimi weights."""
    return CsmTemplate(family, Subwords(TextTokenizer.at(checkpoint), family), codec)
