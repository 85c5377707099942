"""Bagpiper prompts: `[bos]`, `[role][modality] content [end]` for each piece, and the beginning of the reply.

    [bos] [system][text] You are … [eos] [user][audio] pads … [eot] [user][text] What … [eos] [assistant][text]

The end is [eot] if the next piece has the same role, and [eos] otherwise. Audio input has one row of pads per output
row of the audio encoder. Earlier speech by the assistant consists of codes, with delays and with the pads of the
codebooks. The tokenizer's first token (Qwen's "!" on its own) becomes a pad, as in training. For the layout, see
espnet2/speechlm/model/speechlm/speechlm_job.py in ESPnet.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.families.bagpiper.family import (
    ASSISTANT,
    AUDIO,
    BOS,
    END_OF_REPLY,
    END_OF_TURN,
    PAD,
    SYSTEM,
    TEXT,
    USER,
)
from stretto.family.audio_format import KEY
from stretto.family.base import Family, Task
from stretto.family.log_mel import MelFormat, input_audio
from stretto.family.plugin import config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, check_codes, frame_rows, stream0_rows
from stretto.family.text import Subwords, TextTokenizer
from stretto.records.prompt import InputAudio
from stretto.streams.layout import Segment

SYSTEM_TEXT = "You are a helpful assistant."
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


class BagpiperTemplate:
    """Bagpiper prompt template."""

    def __init__(self, family: Family, subwords: Subwords, audio_format: MelFormat | None):
        assert family.subwords is not None
        self._family = family
        self._subwords = subwords
        self._audio_format = audio_format
        self._unseen = family.subwords.start  # ESPnet's preprocessor treats the tokenizer's id 0 as a pad

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the conversation and the reply's start; add a default system turn if the task has one."""
        if task.system and pieces[0].role != "system":
            pieces = (Piece("system", "", text=SYSTEM_TEXT), *pieces)
        followers = (*(piece.role for piece in pieces[1:]), "assistant")
        parts: list[np.ndarray] = [self._row(BOS)]
        audios: list[InputAudio] = []
        for piece, follower in zip(pieces, followers, strict=True):
            parts += [self._row(ROLES[piece.role]), self._row(TEXT if piece.text is not None else AUDIO)]
            if piece.pcm is not None:
                audios.append(input_audio(piece.pcm, piece.path, sum(map(len, parts)), self._audio_format))
                parts.append(stream0_rows(self._family.layout, [PAD] * audios[-1].num_rows))
            else:
                parts.append(self._content(piece))
            parts.append(self._row(END_OF_TURN if follower == piece.role else END_OF_REPLY))
        begins = TEXT if task.segments[0] is Segment.TEXT else AUDIO
        parts += [self._row(ASSISTANT), self._row(begins)]
        return PromptRows(np.concatenate(parts), audios=tuple(audios))

    def _row(self, token_id: int) -> np.ndarray:
        return stream0_rows(self._family.layout, [token_id])

    def _content(self, piece: Piece) -> np.ndarray:
        layout = self._family.layout
        if piece.text is not None:
            ids = self._subwords.ids(piece.text, piece.path)
            return stream0_rows(layout, [PAD if token_id == self._unseen else token_id for token_id in ids])
        assert piece.codes is not None
        if piece.role != "assistant":
            raise InvalidRequest(piece.path, "audio samples (Bagpiper accepts codes only in assistant turns)", "codes")
        check_codes(piece.codes, self._family, piece.path)
        return frame_rows(layout, piece.codes, tuple(pads[0] for pads in layout.extra))


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template for a checkpoint; it accepts audio if the checkpoint has an audio encoder."""
    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    record = config_at(checkpoint).get(KEY)
    return BagpiperTemplate(family, subwords, None if record is None else MelFormat.from_record(record))
