"""Prompts of OpusLM, one task per request: `[sos][task]`, the input, and the marker that begins the reply.

Task tokens are found by name, older releases' names first. `family.py` has drawings of the prompts.
"""

from pathlib import Path

import numpy as np

from stretto.codec.base import Codec
from stretto.families.base import Family, Task
from stretto.families.opuslm.dialogue_prompt import DialogueTemplate
from stretto.families.opuslm.family import SOS_EOS
from stretto.families.opuslm.prompt_segments import GAP, SegmentWriter
from stretto.families.opuslm.ssl_tokenizer import load_ssl_tokenizer
from stretto.families.tokenizer import TextTokenizer
from stretto.preprocessing.conversation import Piece
from stretto.preprocessing.manner import PLAIN, Manner
from stretto.preprocessing.prompt import PromptRows, Template
from stretto.preprocessing.subwords import Subwords

TASK_TOKENS = {
    "asr": ("codec_ssl_asr", "asr"),
    "text_lm": ("textlm",),
    "audio_lm": ("codec_ssl_audiolm", "audiolm"),
}
PLAIN_TTS, VOICE_TTS = ("codec_ssl_plain_tts", "plain_tts"), ("codec_ssl_tts", "tts")


class OpusTemplate:
    """Prompt template of the base model."""

    def __init__(self, segments: SegmentWriter):
        self._segments = segments

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt of a task; for `tts`, audio in a system turn is the voice to speak in."""
        segments, said = self._segments, pieces[-1]
        names: tuple[str, ...]
        if task.name == "tts":
            voices = [segments.voice(piece) for piece in pieces[:-1]]
            names = VOICE_TTS if voices else PLAIN_TTS
            parts = [segments.piece(said), *voices, segments.marker("codec_ssl")]
        else:
            names = TASK_TOKENS[task.name]
            parts = [segments.text(said) if task.name == "text_lm" else segments.audio(said)]
            parts += [segments.marker("text_bpe")] if task.name == "asr" else []
        head = segments.ids(SOS_EOS, segments.task_id(*names))
        rows = np.concatenate([head, *parts])
        if task.name != "audio_lm":
            return PromptRows(rows)
        # The reply begins in the row after the last frame, while delayed streams still carry the last frames.
        return PromptRows(rows[:-GAP], delayed_tail=rows[-GAP:, 1:])


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template of the base model or of the dialogue model, with a checkpoint's tokenizers."""
    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    ssl = load_ssl_tokenizer(checkpoint, len(family.layout.audio[0]), device)
    segments = SegmentWriter(family, subwords, codec, ssl)
    return DialogueTemplate(segments) if family.name == "opuslm_dialogue" else OpusTemplate(segments)
