"""Three codebooks under the delay pattern, guided by CFG pairs, with a text that may be streamed with the frames.

frame         0    1    2    3    4    5
codebook 0    a0   a1   a1   a3   a4   a4      every third frame repeats the code of the frame before
codebook 1    b0   b1   b2   b3   b4   b5
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stretto.family.base import DrawRules, Family, Task, UnconditionalContext
from stretto.family.input_tracks import TextTrack
from stretto.family.plugin import lazy
from stretto.records.sampling import SamplingConfig, SegmentSampling
from stretto.streams.layout import Segment, StreamLayout

END_OF_REPLY = 1
END_OF_TEXT = 2
END_OF_AUDIO = 4
NULL = 5
TRACK_PAD = 6
TRACK_END = 7
NUM_TEXT_IDS = 64
NUM_CODES = 32
NUM_CODEBOOKS = 3


@dataclass(frozen=True)
class EveryThird(DrawRules):
    """Rule of this family: every third frame repeats the first codebook of the frame before."""

    state: ClassVar = {"last_code": 0}
    row_draw: ClassVar = lazy("stretto_thirds.arrays:RepeatedCodes")
    reference: ClassVar = lazy("stretto_thirds.reference:Repeated")


def build(vocabulary: Mapping[str, Any] | None) -> Family:
    """Return the family. A checkpoint's vocabulary is not needed, because all sizes are constants."""
    starts = range(NUM_TEXT_IDS, NUM_TEXT_IDS + NUM_CODEBOOKS * NUM_CODES, NUM_CODES)
    sampling = SamplingConfig(
        text=SegmentSampling(temperature=0.0),
        audio=SegmentSampling(temperature=0.9, top_k=20, max_rows=200),
        guidance_scale=2.0,
    )
    streams = tuple(range(NUM_CODEBOOKS))
    return Family(
        name="thirds",
        layout=StreamLayout(
            vocab_size=NUM_TEXT_IDS + NUM_CODEBOOKS * NUM_CODES,
            audio=tuple(range(start, start + NUM_CODES) for start in starts),
            delays=(0, 1, 2),
            codebook_streams=streams,
            num_input_only=1,
        ),
        tasks=(Task("tts", (Segment.AUDIO,), (), ("text",), sampling),),
        codec="tiny",
        end_of_reply=END_OF_REPLY,
        end_of_text=END_OF_TEXT,
        end_of_audio=END_OF_AUDIO,
        guided_streams=streams,
        unconditional=UnconditionalContext(null_id=NULL, keep_first=0, keep_last=1),
        max_model_len=512,
        frame_rate=12.5,
        track=TextTrack(NUM_CODEBOOKS, pad_id=TRACK_PAD, end_id=TRACK_END),
        drawing=EveryThird(),
    )
