"""Ends of audio in a step's rows: a drawn end id, a limit, an end frame, or the ends of all streams.

The references are `worker/segment_ends.py`, `worker/stairs.py` and `SegmentState.end_frame`.
"""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.columns import FIRST_END


@triton.jit
def audio_of(
    audio: tl.tensor, frame: tl.tensor, position: tl.tensor, in_audio: tl.tensor, audio_max: tl.tensor,
    ends_of_audio: tl.tensor, rules: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the id written into an audio row where `audio` was drawn, and whether a limit closes the segment there."""
    must_end = ((frame >= audio_max) | (position >= rules.audio_limit)) & in_audio
    is_end = audio != audio
    num_ends: tl.constexpr = rules.num_ends
    for end in tl.static_range(num_ends):
        is_end = is_end | (audio == tl.load(ends_of_audio + end))
    return tl.where(is_end | must_end, rules.end_of_audio, audio), must_end & (is_end == 0)


@triton.jit
def climb_of(
    heard: tl.tensor, drawn: tl.tensor, lanes: tl.tensor, at: tl.tensor, position: tl.tensor, frame: tl.tensor,
    in_audio: tl.tensor, end_frame: tl.tensor, begins: tl.tensor, streams: tl.tensor, rules: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return stream 0 (`heard`) and the codes `drawn`, replaced by end ids on streams that must end."""
    inside = lanes < rules.num_drawn
    ends = tl.load(end_frame + 1 + lanes, mask=inside, other=0)
    codes = tl.load(drawn + lanes, mask=inside, other=0).to(tl.int64)
    first_end, first = tl.load(at + FIRST_END), tl.load(end_frame)
    num_ended = tl.where(first_end < 0, 0, position - first_end)
    has_begun = frame >= tl.load(streams + lanes, mask=inside, other=0)
    codes = tl.where(has_begun, codes, tl.load(begins + 1 + lanes, mask=inside, other=0))
    codes = tl.where(lanes + 1 < num_ended, ends, codes)
    tl.store(drawn + lanes, codes.to(tl.int32), mask=inside)
    heard = tl.where(num_ended > 0, first, heard)
    is_end = (heard == first) | (tl.sum((inside & (codes == ends)).to(tl.int32), 0) > 0)
    tl.store(at + FIRST_END, tl.where(in_audio & (first_end < 0) & is_end, position, first_end))
    return heard


@triton.jit
def end_frame_of(
    heard: tl.tensor, drawn: tl.tensor, lanes: tl.tensor, may_end: tl.tensor, end_frame: tl.tensor,
    rules: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return `heard`, or the end of audio if it forms the end frame with the codes `drawn`."""
    inside = lanes < rules.num_end_frame - 1
    codes = tl.load(drawn + lanes, mask=inside, other=0)
    ends = tl.load(end_frame + 1 + lanes, mask=inside, other=0)
    num_others = tl.sum((codes != ends).to(tl.int32), 0)
    is_end = may_end & (heard == tl.load(end_frame)) & (num_others == 0)
    return tl.where(is_end, rules.end_of_audio, heard)
