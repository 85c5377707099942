"""MOSS-TTS-Realtime (OpenMOSS): Qwen3 1.7B over rows of a text id and 16 codes, with a depth transformer per frame.

    text    system turn … assistant \n │ w0  w1 … w11 │ w12  w13  w14 … pad  pad
    code 0  .             .         .  │ .   .    bos │ A    B    C     …    Y
    code 1  .             .         .  │ .   .    .   │ A    B    C     …    Y

The first twelve ids of the text precede the first frame (A). Each frame is in one row with the next id. A shorter text
has fewer rows, the last of which has `bos`. After the text, its stream has pads. The depth transformer samples all
codes of a frame. Its first position, which reads the hidden state, gives codebook 0 or the end. Each codebook has a pad
id of its own for empty rows, whose embedding is added like a code's. The numbers come from
`OpenMOSS-Team/MOSS-TTS-Realtime`; a checkpoint's config.json may override them (`speech_vocabulary`).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from stretto.family.base import DepthSpec, DrawRules, Family, Vocabulary, builder
from stretto.family.input_tracks import TextTrack
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import StreamLayout
from stretto_moss.moss_tts.family import MAX_MODEL_LEN, moss_family

NUM_MARKERS = 3  # ids of a codebook after its codes: pad, begin and end
NUM_PROMPT_IDS = 12  # ids of a text before the first frame
NUM_RECENT_ROWS = 50  # rows whose ids are penalized
DEPTH = DepthSpec(
    hidden=2048,
    intermediate=6144,
    num_layers=4,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    eps=1e-6,
    rope={"rope_type": "default", "rope_theta": 1e6},
    projection=None,
    has_head_norms=True,
    num_first=1,
)


@dataclass(frozen=True)
class MossRealtimeVocabulary(Vocabulary):
    """Text ids, followed by the ids of each codebook in turn: codes, pad, begin and end.

    Attributes:
        turn_start, turn_end: Text ids around a turn.
        recorded: Text id of the rows of a recording.
        text_pad: Text id of rows after the text.
    """

    num_text_ids: int = 151936
    num_codebooks: int = 16
    codebook_size: int = 1024
    turn_start: int = 151644
    turn_end: int = 151645
    recorded: int = 151654
    text_pad: int = 151655
    max_model_len: int = MAX_MODEL_LEN
    depth: DepthSpec = field(default=DEPTH)

    @property
    def num_code_ids(self) -> int:
        return self.codebook_size + NUM_MARKERS

    @property
    def pads(self) -> tuple[int, ...]:
        """Pad id of each codebook, which the ids of begin and end follow."""
        first = self.num_text_ids + self.codebook_size
        return tuple(first + codebook * self.num_code_ids for codebook in range(self.num_codebooks))

    @property
    def layout(self) -> StreamLayout:
        return StreamLayout(
            vocab_size=self.num_text_ids + self.num_codebooks * self.num_code_ids,
            audio=tuple(range(pad - self.codebook_size, pad) for pad in self.pads),
            delays=(0,) * self.num_codebooks,
            codebook_streams=tuple(range(self.num_codebooks)),
            num_input_only=1,
            pad_id=self.pads[0],
            initial=self.pads,
        )


@dataclass(frozen=True)
class AheadText(TextTrack):
    """Streamed text whose first ids precede the first frame."""

    num_prompt_ids: ClassVar[int] = NUM_PROMPT_IDS


@dataclass(frozen=True)
class RecentPenalty(DrawRules):
    """Rules of a penalty on the ids that a stream has in the last rows."""

    num_recent_rows: int = NUM_RECENT_ROWS

    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:RecentDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.draw:RecentProgram")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:RecentIds")


# Of the authors' card; 5,000 rows, as in their example, are 6 minutes and 40 seconds.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=0.8, top_k=30, top_p=0.6, max_rows=5000),
    repetition_penalty=1.1,
)


def moss_tts_realtime(vocabulary: MossRealtimeVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    pad = vocabulary.text_pad
    return moss_family(
        "moss_tts_realtime",
        vocabulary,
        vocabulary.pads[0] + 2,
        SAMPLING,
        drawing=RecentPenalty(penalized="own"),
        depth=vocabulary.depth,
        track=AheadText(vocabulary.num_codebooks, pad, pad, is_usual=True),
    )


build = builder(MossRealtimeVocabulary, moss_tts_realtime)
