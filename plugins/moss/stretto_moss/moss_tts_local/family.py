"""MOSS-TTS-Local-Transformer v1.5 (OpenMOSS): Qwen3 4B over rows of a text id and 12 codes, with a depth transformer.

    text    … assistant \n start │ slot slot slot end
    code 0  .           .  .     │ A    B    C    .
    code 1  .           .  .     │ A    B    C    .

The depth transformer's first position reads the hidden state. It predicts code 0, and whether a frame follows (a slot
or the end of audio). Position p reads code p - 1 and predicts code p. Empty codebooks add nothing to a row. The numbers
come from `OpenMOSS-Team/MOSS-TTS-Local-Transformer-v1.5`; a checkpoint's config.json may override them
(`speech_vocabulary`).
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from stretto.family.base import DepthSpec, Family, Languages, Vocabulary, builder
from stretto.family.plugin import lazy
from stretto.records.sampling import CodeSampling, SamplingConfig, SegmentSampling
from stretto.streams.layout import StreamLayout
from stretto_moss.moss_tts.family import LANGUAGES, MAX_MODEL_LEN, moss_family


@dataclass(frozen=True)
class Gpt2Spec(DepthSpec):
    """Hyperparameters of a depth transformer with layers as in GPT-2: LayerNorm, biases, and an MLP without a gate."""

    gpt2_activation: Literal["silu", "gelu", "gelu_new"] = "silu"

    network: ClassVar = lazy(f"{__package__}.model:Gpt2Depth")
    reference: ClassVar = lazy(f"{__package__}.depth_reference:Gpt2Reference")
    random_weights: ClassVar = lazy(f"{__package__}.depth_reference:random_weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_first not in (1, 2) or self.schedule:
            raise ValueError(f"expected num_first 1 or 2 and no schedule, got {self}")


DEPTH = Gpt2Spec(
    hidden=2560,
    intermediate=9728,
    num_layers=1,
    num_heads=32,
    num_kv_heads=32,
    head_dim=80,
    eps=1e-6,
    rope={"rope_type": "default", "rope_theta": 1e4},
    projection=None,
    num_first=2,
)


@dataclass(frozen=True)
class LocalVocabulary(Vocabulary):
    """Text ids, followed by the codes of each codebook in turn.

    Attributes:
        pad: Text id of an empty stream.
        turn_start, turn_end: Text ids around a turn.
        audio_start, audio_end: Text ids around audio.
        recorded: Text id of the rows of a recording.
        slot: Text id of a row with a frame.
    """

    num_text_ids: int = 151936
    num_codebooks: int = 12
    codebook_size: int = 1024
    pad: int = 151643
    turn_start: int = 151644
    turn_end: int = 151645
    audio_start: int = 151669
    audio_end: int = 151670
    recorded: int = 151654
    slot: int = 151656
    max_model_len: int = MAX_MODEL_LEN
    depth: Gpt2Spec = field(default=DEPTH)

    @property
    def layout(self) -> StreamLayout:
        first = self.num_text_ids
        size = self.codebook_size
        starts = range(first, first + self.num_codebooks * size, size)
        return StreamLayout(
            vocab_size=first + self.num_codebooks * size,
            audio=(range(self.slot, self.slot + 1), *(range(start, start + size) for start in starts)),
            delays=(0,) * (1 + self.num_codebooks),
            codebook_streams=tuple(range(1, 1 + self.num_codebooks)),
            pad_id=self.pad,
        )


# Of `generate` of the authors and of their card; 4,096 rows are 5 minutes and 27 seconds.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, top_k=50, max_rows=4096),
    depth=CodeSampling(temperature=1.7, top_k=25, top_p=0.8),
)


def moss_tts_local(vocabulary: LocalVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    return moss_family(
        "moss_tts_local",
        vocabulary,
        vocabulary.audio_end,
        SAMPLING,
        languages=Languages(tuple(LANGUAGES)),
        options=("instruct",),
        depth=vocabulary.depth,
    )


build = builder(LocalVocabulary, moss_tts_local)
