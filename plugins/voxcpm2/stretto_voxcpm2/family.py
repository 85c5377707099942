"""VoxCPM2 (OpenBMB, https://github.com/OpenBMB/VoxCPM): speech as patches of four latents, 160 ms each, 48 kHz.

    tts     [103] reference … [104] │ transcript, text │ [101] │ prompt audio … ─► p0 p1 p2 … pe [end]

A row is a text id or a patch. A reference determines only the voice. If there is a transcript with prompt audio, the
reply continues that audio. The patch of a row is generated from the previous row: from its hidden states in both
language models, and from its patch.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from stretto.family.base import ROLES, DrawRules, Family, Task, Vocabulary, builder
from stretto.family.plugin import lazy
from stretto.records.sampling import LatentSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, LatentSpec, Segment, StreamLayout

NAME = "voxcpm2"
FRAME_RATE = 6.25
# The authors' defaults: `min_len` + 1, `max_len`, `inference_timesteps`, `cfg_value`.
MIN_PATCHES = 3
MAX_PATCHES = 2000
DEFAULT_STEPS = 10
DEFAULT_GUIDANCE = 2.0
STEPS = range(2, 51)
MAX_WORDS = 4096  # limit for validation; patches in every release have fewer float32 numbers
MAX_TEXT_CHARS = 1000
MAX_AUDIO_S = 30.0
# Ids in the tokenizer: beginning of the reply's audio, beginning and end of a reference.
AUDIO_START = 101
REFERENCE_START = 103
REFERENCE_END = 104


@dataclass(frozen=True)
class VoxCpmVocabulary(Vocabulary):
    """Ids and sizes of a release."""

    num_text_ids: int = 73448
    num_latents: int = 4
    num_numbers: int = 64
    max_model_len: int = 4096

    def __post_init__(self) -> None:
        if self.num_text_ids <= REFERENCE_END:
            raise ValueError(f"num_text_ids must be above {REFERENCE_END}, got {self.num_text_ids}")
        if min(self.num_latents, self.num_numbers) < 1 or self.num_words > MAX_WORDS:
            raise ValueError(f"a patch must have 1 to {MAX_WORDS} words, got {self.num_words}")

    @property
    def frames(self) -> range:
        """Patch ids: the usual id, and the id of the patch in which speech ends."""
        return range(self.num_text_ids, self.num_text_ids + 2)

    @property
    def end(self) -> int:
        return self.frames.stop

    @property
    def vocab_size(self) -> int:
        return self.end + 1

    @property
    def num_words(self) -> int:
        """Number of 32-bit words in a patch."""
        return self.num_latents * self.num_numbers

    @property
    def layout(self) -> StreamLayout:
        return StreamLayout(
            vocab_size=self.vocab_size,
            audio=(self.frames,),
            delays=(0,) * (1 + self.num_words),
            codebook_streams=tuple(range(1, 1 + self.num_words)),
            latents=LatentSpec(self.num_words, STEPS, has_unit_noise=True),
        )


@dataclass(frozen=True)
class GuidedRows(DrawRules):
    """Rules for a latent predictor that applies guidance within a row, and reads the latent of the row before."""

    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:GuidedDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:GuidedProgram")


SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, min_rows=MIN_PATCHES, max_rows=MAX_PATCHES),
    latents=LatentSampling(DEFAULT_STEPS, tail_rows=1, guidance_scale=DEFAULT_GUIDANCE),
)


def voxcpm2(vocabulary: VoxCpmVocabulary) -> Family:
    """Return the family for a vocabulary."""
    content: dict[str, Any] = {"has_history": True, "system": ("audio", "text"), "voice_roles": ROLES}
    tts = Task("tts", (Segment.AUDIO,), (), ("text",), SAMPLING, **content)
    return Family(
        name=NAME,
        layout=vocabulary.layout,
        tasks=(tts,),
        codec="audiovae",
        end_of_reply=vocabulary.end,
        options=("instruct",),
        max_text_chars=MAX_TEXT_CHARS,
        max_audio_s=MAX_AUDIO_S,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=1,
        steady_chunk_frames=6,
        tail=NO_TAIL,
        drawing=GuidedRows(),
    )


build = builder(VoxCpmVocabulary, voxcpm2)
