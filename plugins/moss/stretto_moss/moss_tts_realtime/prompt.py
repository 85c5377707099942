"""MOSS-TTS-Realtime prompts: a system turn, the voice, and the start of the assistant's text.

    <start>system
    You are a highly expressive text-to-speech (TTS) engine …<end>
    <start>context
    The assistant section should be synthesized using the following voice timbre: recorded … recorded<end>
    <start>assistant
    The first twelve ids of the text

Without a recording, there is no context turn. Text ids are on the text stream; the codebooks are empty except in the
rows of the recording, and in the last row, which begins the audio. The layout is that of the authors' inferencer.
"""

from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template
from stretto.family.text import Subwords, TextTokenizer, check_text, without_leading_line_ends
from stretto.records.prompt import MAX_PART_CHARS
from stretto_moss.moss_tts.prompt import recorded_codes
from stretto_moss.moss_tts_realtime.family import NUM_PROMPT_IDS, MossRealtimeVocabulary

SYSTEM = (
    "You are a highly expressive text-to-speech (TTS) engine developed by Mosi Intelligence. \n"
    "You possess natural language understanding, emotional modeling, and multi-style speech generation capabilities, "
    "allowing you to generate the corresponding speech based on the text given in the assistant."
)
VOICE = "The assistant section should be synthesized using the following voice timbre:"


class MossRealtimeTemplate:
    """MOSS-TTS-Realtime prompt template."""

    def __init__(self, family: Family, vocabulary: MossRealtimeVocabulary, tokenizer: TextTokenizer, codec: Codec):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._subwords = Subwords(tokenizer, family)
        self._encoder = CachedEncoder(codec.encode)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt for the text of the last piece, in the voice of an earlier one.

        The prompt of an open text ends with the rows of its first twelve ids, which are pads until they are known. A
        reply does not end before its text has been read, whether this is open or not.
        """
        *voices, piece = pieces
        assert piece.text is not None, task.name
        vocabulary = self._vocabulary
        if manner.is_open:
            check_text(piece.text, piece.path, MAX_PART_CHARS)
            words = [vocabulary.text_pad] * NUM_PROMPT_IDS
        else:
            words = self._subwords.ids(without_leading_line_ends(piece.text), piece.path)
        first = self._rows(*words[:NUM_PROMPT_IDS])
        first[-1, 0] = vocabulary.pads[0] + 1
        head = [self._turn("system", SYSTEM), *map(self._voice, voices), self._opened("assistant\n")]
        track = () if manner.is_open else (*words[NUM_PROMPT_IDS:], vocabulary.text_pad)
        return PromptRows(np.concatenate([*head, first]), track=track, min_rows=len(track))

    def _voice(self, piece: Piece) -> np.ndarray:
        """Return the turn with a recording of the voice."""
        vocabulary = self._vocabulary
        codes = recorded_codes(piece, self._family, self._encoder)
        recorded = self._rows(*[vocabulary.recorded] * codes.shape[1])
        recorded[:, : vocabulary.num_codebooks] = codes.T + np.array([ids.start for ids in self._family.layout.audio])
        return np.concatenate([self._opened(f"context\n{VOICE}"), recorded, self._end()])

    def _turn(self, role: str, text: str) -> np.ndarray:
        return np.concatenate([self._opened(f"{role}\n{text}"), self._end()])

    def _opened(self, text: str) -> np.ndarray:
        return self._rows(self._vocabulary.turn_start, *self._tokenizer.encode(text))

    def _end(self) -> np.ndarray:
        return self._rows(self._vocabulary.turn_end, *self._tokenizer.encode("\n"))

    def _rows(self, *ids: int) -> np.ndarray:
        """Return rows, int32 [n, K + 1], with text ids and the pads of all codebooks."""
        rows = np.tile(np.array((*self._vocabulary.pads, 0), np.int32), (len(ids), 1))
        rows[:, -1] = ids
        return rows


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = MossRealtimeVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    return MossRealtimeTemplate(family, vocabulary, tokenizer, codec)
