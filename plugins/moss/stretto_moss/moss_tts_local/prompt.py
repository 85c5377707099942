"""MOSS-TTS-Local v1.5 prompts: MOSS-TTS prompts whose parts are joined differently, with recordings without delays.

    <start>user
    <user_inst>
    - Reference(s):
    <audio> recorded … recorded <end of audio>  a recording of the voice, or None
    - Instruction:
    …
    - Text:
    Hello.
    </user_inst><end>
    <start>assistant
    <audio> ─►

As in the authors' processor, the text is tokenized by itself and not cleaned, and the recording has no label.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template
from stretto.family.text import PlainTokenizer, TextTokenizer, check_no_markers, check_text
from stretto_moss.moss_tts.family import LANGUAGES
from stretto_moss.moss_tts.prompt import FIELDS, levelled, recorded_codes
from stretto_moss.moss_tts_local.family import LocalVocabulary

NO_VALUE = "None"
# Fields of the vocabulary with ids that a client's text may not have.
MARKERS = ("pad", "turn_start", "turn_end", "audio_start", "audio_end", "recorded", "slot")


class LocalTemplate:
    """MOSS-TTS-Local prompt template. `encode` returns the codes of a recording, int64 [K, T]."""

    def __init__(
        self,
        family: Family,
        vocabulary: LocalVocabulary,
        tokenizer: PlainTokenizer,
        encode: Callable[[np.ndarray], np.ndarray],
    ):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._encoder = CachedEncoder(encode)
        markers = {getattr(vocabulary, name) for name in MARKERS}
        self._markers = {token_id: name for token_id, name in tokenizer.tokens.items() if token_id in markers}

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the user turn, and those of the assistant turn up to its first frame."""
        *voices, piece = pieces
        assert piece.text is not None, piece.path
        vocabulary = self._vocabulary
        encode = self._tokenizer.encode
        check_text(manner.instruct, "options.instruct", self._family.max_text_chars)
        check_text(piece.text, piece.path, self._family.max_text_chars)
        words = encode(piece.text)
        if not piece.text.strip():
            raise InvalidRequest(piece.path, "text of at least one character", repr(piece.text[:20]))
        instruction = manner.instruct.strip() or NO_VALUE
        for path, ids in (("options.instruct", encode(instruction)), (piece.path, words)):
            check_no_markers(ids, self._markers, path)
        values = dict.fromkeys(FIELDS[1:], NO_VALUE) | {"Instruction": instruction, "Text": ""}
        values["Language"] = NO_VALUE if manner.language is None else LANGUAGES[manner.language]
        fields = "".join(f"\n- {name}:\n{value}" for name, value in values.items())
        recorded = self._recorded(voices[0]) if voices else self._rows(*encode(NO_VALUE))
        end = [
            *encode("\n</user_inst>"),
            vocabulary.turn_end,
            *encode("\n"),
            vocabulary.turn_start,
            *encode("assistant\n"),
        ]
        parts = [
            self._rows(vocabulary.turn_start, *encode("user\n"), *encode("<user_inst>\n- Reference(s):\n")),
            recorded,
            self._rows(*encode(fields), *words, *end, vocabulary.audio_start),
        ]
        return PromptRows(np.concatenate(parts))

    def _recorded(self, piece: Piece) -> np.ndarray:
        """Return the rows of a recording, from the start of audio to its end."""
        vocabulary = self._vocabulary
        codes = recorded_codes(piece, self._family, self._encoder)
        rows = self._rows(vocabulary.audio_start, *[vocabulary.recorded] * codes.shape[1], vocabulary.audio_end)
        rows[1:-1, 1:] = codes.T + np.array([ids.start for ids in self._family.layout.audio[1:]])
        return rows

    def _rows(self, *ids: int) -> np.ndarray:
        """Return rows, int32 [n, 1 + K], with text ids and without codes."""
        rows = np.full((len(ids), 1 + self._vocabulary.num_codebooks), self._vocabulary.pad, np.int32)
        rows[:, 0] = ids
        return rows


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = LocalVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint)
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    return LocalTemplate(family, vocabulary, tokenizer, lambda pcm: codec.encode(levelled(pcm)))
