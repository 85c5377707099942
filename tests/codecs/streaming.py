"""How the tests drive a codec: as the tools do."""

import torch

from benchmarks.code_streams import chunks_of, random_codes, stream
from stretto.codecs.base import Codec, Window

__all__ = ["check_half_precision", "chunks_of", "random_codes", "stream"]


def check_half_precision(codec: Codec, num_frames: int) -> None:
    """Under autocast the waveform stays near the whole one, and the state keeps its own precision."""
    codes = random_codes(codec, 2, num_frames)
    whole = stream(codec, codes, [num_frames])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = stream(codec, codes, chunks_of(5, num_frames))
        _, state = codec.decode(Window(codes, 0, 0, torch.tensor([0, 0]), codec.initial_state(2)))
    assert state.dtype == torch.float32
    assert 0 < (rounded.float() - whole).square().mean().sqrt() < 0.03 * whole.square().mean().sqrt()
