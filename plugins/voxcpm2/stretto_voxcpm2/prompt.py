"""VoxCPM2 prompts: a reference for the voice, the ids of the text, and audio that the reply continues.

    [103] reference … [104] │ transcript and text │ [101] │ audio of the transcript …

The layout follows `_generate_with_prompt_cache` in https://github.com/OpenBMB/VoxCPM, voxcpm/model/voxcpm2.py. A
recording in the system turn is the reference. The new reply continues a recording that has a transcript, or an earlier
reply to a text.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stretto.codecs.base import Codec
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.base import Family, Task
from stretto.family.encoded_voices import CachedEncoder
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import TextTokenizer, check_text
from stretto_voxcpm2.family import (
    AUDIO_START,
    MAX_PATCHES,
    REFERENCE_END,
    REFERENCE_START,
    VoxCpmVocabulary,
)

# Maximum length of a reply: the authors' `retry_badcase_ratio_threshold` patches per text token, plus a few.
PATCHES_PER_TOKEN = 6
SPARE_PATCHES = 10
NUM_CONTEXT_PATCHES = 3  # number of patches of the continued audio from which the decoder starts
MIN_AUDIO_S = 0.4
CHINESE = range(0x4E00, 0xA000)
WORD_START = "▁"
UNKNOWN = "<unk>"


class VoxCpmTokenizer:
    """Tokenizer that splits multi-character Chinese tokens into single characters."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        ids = {token: token_id for token_id, token in tokenizer.tokens.items()}
        words = {token for token in ids if len(token) > 1 and all(ord(character) in CHINESE for character in token)}
        self._split = dict[int, list[int]]()
        for token, token_id in ids.items():
            bare = token.replace(WORD_START, "")
            if bare in words:
                characters = [ids.get(character, ids.get(UNKNOWN, -1)) for character in bare]
                if min(characters) < 0:
                    raise CheckpointError(f"tokenizer: expected a token for each character of {token!r}, or {UNKNOWN}")
                self._split[token_id] = characters

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text)
        return [piece_id for token_id in ids for piece_id in self._split.get(token_id, (token_id,))]


class VoxCpmTemplate:
    """VoxCPM2 prompt template."""

    def __init__(self, family: Family, vocabulary: VoxCpmVocabulary, tokenizer: VoxCpmTokenizer, codec: Codec):
        self._family = family
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._rate = codec.spec.input_rate or codec.spec.sample_rate
        spec = codec.spec
        self._unit = round(self._rate * spec.samples_per_frame / spec.sample_rate)
        self._encoder = CachedEncoder(codec.encode)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of a conversation: system turn, earlier text with its audio, and text to speak."""
        *before, last = pieces
        assert last.text is not None, task.name
        reference, transcript, continued = self._voice(before)
        text = re.sub(r"\s+", " ", self._checked(last))
        if not text.strip():
            raise InvalidRequest(last.path, "text of at least one character", shown(last.text))
        check_text(manner.instruct, "options.instruct", self._family.max_text_chars)
        if manner.instruct.strip():
            if continued is not None:
                raise InvalidRequest("options.instruct", "no value, as audio is continued", shown(manner.instruct))
            check_text(manner.instruct, "options.instruct", self._family.max_text_chars)
            text = f"({manner.instruct.strip()}){text}"
        prompt = "" if transcript is None else self._checked(transcript)
        parts = []
        if reference is not None:
            patches = self._patches(reference, is_continued=False)
            parts += [self._ids([REFERENCE_START]), patches, self._ids([REFERENCE_END])]
        parts.append(self._ids([*self._tokenizer.encode(prompt + text), AUDIO_START]))
        num_context = 0
        if continued is not None:
            parts.append(self._patches(continued, is_continued=True))
            num_context = min(NUM_CONTEXT_PATCHES, len(parts[-1]))
        longest = PATCHES_PER_TOKEN * len(self._tokenizer.encode(text)) + SPARE_PATCHES
        rows = np.concatenate(parts)
        return PromptRows(rows, num_reference_rows=num_context, max_rows=min(longest, MAX_PATCHES))

    def _voice(self, pieces: Sequence[Piece]) -> tuple[Piece | None, Piece | None, Piece | None]:
        """Return the reference, the transcript, and the audio to continue. Each is None if missing."""
        system = [piece for piece in pieces if piece.role == "system"]
        history = [piece for piece in pieces if piece.role != "system"]
        recordings = [piece for piece in system if piece.text is None]
        transcripts = [piece for piece in system if piece.text]
        if transcripts and not recordings:
            raise InvalidRequest(transcripts[0].path, "a transcript with its audio in the system turn", "text only")
        if not history:
            recording = recordings[0] if recordings else None
            return (None, transcripts[0], recording) if transcripts else (recording, None, None)
        is_reply = [(piece.role, piece.text is None) for piece in history] == [("user", False), ("assistant", True)]
        if not is_reply or transcripts:
            expected = "one text with the audio of its reply before the last text"
            got = "a transcript as well" if transcripts else f"{len(history)} texts and recordings"
            raise InvalidRequest("messages", expected, got)
        transcript, continued = history
        return (recordings[0] if recordings else None), transcript, continued

    def _checked(self, piece: Piece) -> str:
        assert piece.text is not None
        check_text(piece.text, piece.path, self._family.max_text_chars)
        return piece.text

    def _ids(self, ids: list[int]) -> np.ndarray:
        return stream0_rows(self._family.layout, ids)

    def _patches(self, piece: Piece, is_continued: bool) -> np.ndarray:
        """Return the rows [n, S] of a recording.

        A reference is padded at the end. Audio to continue is padded at the start, so that the reply follows directly.
        """
        words = self._encoded(piece, is_continued) if piece.codes is None else piece.codes
        rows = self._ids([self._vocabulary.frames[0]] * words.shape[1])
        rows[:, 1:] = words.T
        return rows

    def _encoded(self, piece: Piece, is_continued: bool) -> np.ndarray:
        """Encode a recording to latents as words, int32 [D, T]."""
        pcm = piece.pcm
        assert pcm is not None, "a recording has samples, codes or latents"
        if len(pcm) < MIN_AUDIO_S * self._rate:
            raise InvalidRequest(piece.path, f"at least {MIN_AUDIO_S:g} s", f"{len(pcm) / self._rate:.4f} s")
        if is_continued:
            pcm = np.pad(pcm, (-len(pcm) % self._unit, 0))
        return self._encoder.encode(pcm)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = VoxCpmVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = TextTokenizer.at(checkpoint, spells_bytes=False)
    tokenizer.check_size(vocabulary.num_text_ids, checkpoint)
    return VoxCpmTemplate(family, vocabulary, VoxCpmTokenizer(tokenizer), codec)
