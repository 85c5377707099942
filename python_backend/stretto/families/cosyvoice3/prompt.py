"""Prompts of CosyVoice 3: instruction, words of a recording, text and codes of the recording.

Layout: `CosyVoice3LM.inference` and `CosyVoiceFrontEnd` of https://github.com/FunAudioLLM/CosyVoice. With a style
instruction, the words and codes of the recording are left out, as in `inference_instruct2`.
"""

from pathlib import Path

from stretto.codecs.base import Codec
from stretto.encoders.s3gen import MEL_RATE
from stretto.errors import CheckpointError, InvalidRequest
from stretto.families.audio_format import CachedEncoder
from stretto.families.base import Family, Task
from stretto.families.cosyvoice3.family import (
    MAX_ROWS_PER_TOKEN,
    MIN_ROWS_PER_TOKEN,
    MIN_VOICE_S,
    SOS,
    TASK,
    CosyVoice3Vocabulary,
)
from stretto.families.cosyvoice3.voices import FOLDER, Hearing, latest_chunks, sound_of
from stretto.families.plugin import VOCABULARY, config_at
from stretto.families.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.families.text import Subwords, TextTokenizer
from stretto.records.chunk import Sound

HELPFUL = "You are a helpful assistant."
MARKERS = ("<|endofprompt|>", "<|endofsystem|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")


class CosyVoice3Template:
    """Prompt template of CosyVoice 3."""

    def __init__(self, family: Family, vocabulary: CosyVoice3Vocabulary, subwords: Subwords, hearing: Hearing):
        self._family, self._known, self._subwords = family, vocabulary, subwords
        self._voices = CachedEncoder(hearing.encode)

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the rows of the last piece's text, in the voice of the recording in the pieces before it."""
        *before, piece = pieces
        assert piece.text is not None, task.name
        text = self._ids(piece.text, piece.path)
        sound, words = self._recorded(before)
        instruction = f"{HELPFUL} {manner.instruct}" if manner.instruct else HELPFUL
        style = [*self._ids(instruction, "options.instruct"), self._known.end_of_prompt]
        codes = list[int]()
        if words and not manner.instruct:
            codes = (sound.arrays()[0] + self._known.codes.start).tolist()
        ends = self._known.ends
        ids = [ends[SOS], *style, *(words if codes else []), *text, ends[TASK], *codes]
        return PromptRows(
            stream0_rows(self._family.layout, ids),
            min_rows=MIN_ROWS_PER_TOKEN * len(text),
            max_rows=MAX_ROWS_PER_TOKEN * len(text),
            sound=latest_chunks(sound),
        )

    def _recorded(self, pieces: list[Piece]) -> tuple[Sound, list[int]]:
        """Return the recording in a system turn, and the ids of its words, if it has any."""
        recordings = [piece for piece in pieces if piece.text is None]
        if not recordings:
            expected = "a system turn with audio (this model speaks in the voice of a recording)"
            raise InvalidRequest("messages", expected, "none")
        piece = recordings[0]
        if piece.pcm is None:
            raise InvalidRequest(piece.path, "a voice recording as a file or samples", "codes")
        if len(piece.pcm) < MIN_VOICE_S * MEL_RATE:
            raise InvalidRequest(piece.path, f"at least {MIN_VOICE_S:g} s", f"{len(piece.pcm) / MEL_RATE:.4f} s")
        words = [self._ids(each.text, each.path) for each in pieces if each.text]
        try:
            sound = sound_of(self._voices.encode(piece.pcm))
        except InvalidRequest as error:
            raise InvalidRequest(piece.path, error.expected, error.got) from None
        return sound, words[0] if words else []

    def _ids(self, text: str, path: str) -> list[int]:
        """Return the ids of a text; raise InvalidRequest if it has a marker of the model, or no word."""
        for marker in MARKERS:
            if marker in text:
                raise InvalidRequest(path, "none of the model's markers", marker)
        if not text.strip():
            raise InvalidRequest(path, "text of at least one character", repr(text[:40]))
        return self._subwords.ids(text, path)


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template with a checkpoint's tokenizer and networks that encode recordings."""
    known = CosyVoice3Vocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    if codec.spec.codebook_size != known.num_codes:
        raise CheckpointError(f"{checkpoint}: expected a codec of {known.num_codes} codes, got {codec.spec}")
    hearing = Hearing(checkpoint / FOLDER, known.num_codes)
    return CosyVoice3Template(family, known, Subwords(TextTokenizer.at(checkpoint), family), hearing)
