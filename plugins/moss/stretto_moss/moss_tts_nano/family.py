"""MOSS-TTS-Nano (OpenMOSS): GPT-2's layers over rows of a text id and 16 codes, with a depth transformer of one layer.

    text    … assistant \n start │ slot slot slot end
    code 0  .           .  .     │ A    B    C    .
    code 1  .           .  .     │ A    B    C    .

Position 0 of the depth transformer reads the hidden state and predicts whether a frame follows (a slot or the end of
audio). Position 1 reads the slot, and position p the code p - 2, for code p - 1. Empty codebooks add nothing to a row.
The numbers come from `OpenMOSS-Team/MOSS-TTS-Nano`; a checkpoint's config.json may override them (`speech_vocabulary`).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from stretto.family.base import Family, builder
from stretto.family.plugin import lazy
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto_moss.moss_tts.family import moss_family
from stretto_moss.moss_tts_local.family import Gpt2Spec, LocalVocabulary
from stretto_moss.moss_tts_realtime.family import RecentPenalty

MAX_MODEL_LEN = 4096  # rows: 4 minutes of speech after a prompt; the backbone's own limit is 32,768
DEPTH = Gpt2Spec(
    hidden=768,
    intermediate=3072,
    num_layers=1,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    eps=1e-5,
    rope={"rope_type": "default", "rope_theta": 1e4},
    projection=None,
    num_first=1,
    gpt2_activation="gelu_new",
)


@dataclass(frozen=True)
class NanoVocabulary(LocalVocabulary):
    """Ids as in `LocalVocabulary`, with the text ids of a SentencePiece tokenizer."""

    num_text_ids: int = 16384
    num_codebooks: int = 16
    pad: int = 3
    turn_start: int = 4
    turn_end: int = 5
    audio_start: int = 6
    audio_end: int = 7
    recorded: int = 8
    slot: int = 9
    max_model_len: int = MAX_MODEL_LEN
    depth: Gpt2Spec = field(default=DEPTH)


@dataclass(frozen=True)
class CodePenalty(RecentPenalty):
    """Penalty on the codes that a codebook has in the reply so far. The choice between slot and end has none."""

    num_recent_rows: int = MAX_MODEL_LEN

    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:CodeDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:CodeProgram")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:RepeatedCodes")


# Of the authors' three programs. They speak at most 75 tokens of a text at once, in at most 375 rows.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, top_k=50, max_rows=2048),
    depth=CodeSampling(temperature=0.8, top_k=25, top_p=0.95),
    repetition_penalty=1.2,
)


def moss_tts_nano(vocabulary: NanoVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    return moss_family(
        "moss_tts_nano",
        vocabulary,
        vocabulary.audio_end,
        SAMPLING,
        codec="moss_nano",
        drawing=CodePenalty(penalized="own"),
        depth=vocabulary.depth,
    )


build = builder(NanoVocabulary, moss_tts_nano)
