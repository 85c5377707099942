"""How the tests drive a codec: as the tools do."""

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.decoder import chunks_of, random_codes, stream
from stretto.codecs.base import Codec, Window
from stretto.streams.layout import words_of

__all__ = ["check_half_precision", "chunks_of", "decode_latents", "decode_words", "largest", "random_codes", "stream"]


def decode_words(codec: Codec, words: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return the samples [B, n] of a codec without context for words [B, K, T], in chunks of `sizes` frames."""
    state, first, parts = codec.initial_state(len(words)), 0, []
    for size in sizes:
        window = Window(words[:, :, first : first + size], 0, 0, torch.full((len(words),), first), state)
        pcm, state = codec.decode(window)
        parts.append(pcm)
        first += size
    assert first == words.shape[2]
    return torch.cat(parts, 1)


def decode_latents(codec: Codec, latents: np.ndarray, sizes: Sequence[int]) -> torch.Tensor:
    """Return the samples [B, n] of latents [B, T, D]; see `decode_words`."""
    return decode_words(codec, torch.from_numpy(words_of(latents)).transpose(1, 2).long(), sizes)


def largest(difference: torch.Tensor) -> float:
    """Return the largest absolute value."""
    return difference.abs().max().item()


def check_half_precision(codec: Codec, num_frames: int) -> None:
    """Under autocast the waveform stays near the whole one, and the state keeps its own precision."""
    codes = random_codes(codec, 2, num_frames)
    whole = stream(codec, codes, [num_frames])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = stream(codec, codes, chunks_of(5, num_frames))
        _, state = codec.decode(Window(codes, 0, 0, torch.tensor([0, 0]), codec.initial_state(2)))
    assert state.dtype == torch.float32
    assert 0 < (rounded.float() - whole).square().mean().sqrt() < 0.03 * whole.square().mean().sqrt()
