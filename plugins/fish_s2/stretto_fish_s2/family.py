"""Fish Audio S2 Pro: Qwen3 4B over rows of a text id or a frame of ten codes, with a depth transformer.

    stream 0   system turn, user turn, <start>assistant\\n<voice> │ s0  s1  s2 … end
    stream 1   .                                                  │ a0  a1  a2 … .
    …
    stream 9   .                                                  │ i0  i1  i2 … .

The backbone samples stream 0, a semantic token of the text vocabulary or the end, and the depth transformer the nine
other codes. The embeddings of a frame are summed and divided by √11. The converter folds this factor, and codebook 0's
own table, into the rows of the table. The model generates no text and was not trained for guidance. The numbers come
from `fishaudio/s2-pro`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from stretto.family.base import DepthSpec, DrawRules, Family, Task, Vocabulary, builder
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import NO_TAIL, Segment, StreamLayout

NAME = "fish_s2"
FRAME_RATE = 44_100 / 2048
MAX_MODEL_LEN = 8192  # six minutes; the published model takes 32,768 rows
SPEAKERS = tuple(f"<|speaker:{number}|>" for number in range(10))  # tags that clients keep in a text
DEPTH = DepthSpec(
    hidden=2560,
    intermediate=9728,
    num_layers=4,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    eps=1e-6,
    rope={"rope_type": "default", "rope_theta": 1e6},
    projection=None,
)


@dataclass(frozen=True)
class FishVocabulary(Vocabulary):
    """Text ids, which include the codes of codebook 0, followed by the codes of the other codebooks.

    Attributes:
        first_semantic: Text id of code 0 of codebook 0.
        codebook_size: Number of codes per codebook. The codec has fewer in all but the first, and clips larger ones.
        turn_start, turn_end: Text ids around a turn; `turn_end` also ends a reply.
        voice: Text id before the speech of a turn.
        pad: Text id of an empty stream.
    """

    num_text_ids: int = 155776
    first_semantic: int = 151678
    num_codebooks: int = 10
    codebook_size: int = 4096
    turn_start: int = 151644
    turn_end: int = 151645
    voice: int = 151673
    pad: int = 151669
    max_model_len: int = MAX_MODEL_LEN
    depth: DepthSpec = field(default=DEPTH)

    @property
    def layout(self) -> StreamLayout:
        size = self.codebook_size
        first = self.num_text_ids
        starts = self.first_semantic, *range(first, first + (self.num_codebooks - 1) * size, size)
        return StreamLayout.of_frames(starts, size, pad_id=self.pad)


@dataclass(frozen=True)
class LateTemperature(DrawRules):
    """Sampling of codes as in the authors' code: top-k and top-p apply to the probabilities at temperature 1.

    The code whose probability makes the sum exceed top-p is left out, unless it is the most probable one. A code of
    codebook 0 that repeats is sampled again, at temperature 1 and with top-p `redraw_top_p`. The first frame of a reply
    does not count as a repeat, and the other codebooks may repeat.
    """

    redraw_top_p: float

    row_draw: ClassVar = lazy(f"{__package__}.mechanism.draw:LateTemperatureDraw")
    step_program: ClassVar = lazy(f"{__package__}.mechanism.kernel:LateTemperatureProgram")
    reference: ClassVar = lazy(f"{__package__}.mechanism.reference:LateTemperatureRule")


# Defaults of the authors' `generate_long` and of their command; with repetition-aware sampling in the last ten frames.
SAMPLING = SamplingConfig(
    text=SegmentSampling(temperature=0.0),
    audio=SegmentSampling(temperature=1.0, top_k=30, top_p=0.9, min_rows=1),
    ras_window=10,
    ras_max_repeats=1,
)


def fish_s2(vocabulary: FishVocabulary) -> Family:
    """Return the family of a checkpoint with this vocabulary."""
    layout = vocabulary.layout
    end = vocabulary.turn_end
    return Family(
        name=NAME,
        layout=layout,
        tasks=(
            Task(
                "tts",
                (Segment.AUDIO,),
                (),
                ("text",),
                SAMPLING,
                has_history=True,
                system=("audio", "text"),
                continues="turns",
            ),
        ),
        codec="fish_s2",
        end_of_reply=end,
        tags=SPEAKERS,
        max_text_chars=4000,
        max_audio_s=60.0,
        max_model_len=vocabulary.max_model_len,
        frame_rate=FRAME_RATE,
        first_chunk_frames=2,
        steady_chunk_frames=21,
        tail=NO_TAIL,
        subwords=range(vocabulary.num_text_ids),
        depth=vocabulary.depth,
        drawing=LateTemperature(redraw_top_p=0.9),
    )


build = builder(FishVocabulary, fish_s2)
