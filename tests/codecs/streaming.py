"""Helpers that drive a codec in tests as the tools do."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.decoder import chunks_of, random_codes, stream
from stretto.codecs.base import Codec, Window
from stretto.streams.layout import words_of

NUM_PADDED = 3  # frames

__all__ = ["chunks_of", "random_codes", "stream"]


def decode_words(codec: Codec, words: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Decode words [B, K, T] with a codec without context, in chunks of `sizes` frames, to samples [B, n]."""
    state, first, parts = codec.initial_state(len(words)), 0, []
    for size in sizes:
        window = Window(words[:, :, first : first + size], 0, 0, torch.full((len(words),), first), state)
        pcm, state = codec.decode(window)
        parts.append(pcm)
        first += size
    assert first == words.shape[2]
    return torch.cat(parts, 1)


def decode_latents(codec: Codec, latents: np.ndarray, sizes: Sequence[int]) -> torch.Tensor:
    """Decode latents [B, T, D] to samples [B, n]; see `decode_words`."""
    return decode_words(codec, torch.from_numpy(words_of(latents)).transpose(1, 2).long(), sizes)


def largest(difference: torch.Tensor) -> float:
    """Return the largest absolute value."""
    return difference.abs().max().item()


def heard(decode: Callable[[torch.Tensor], torch.Tensor], codes: torch.Tensor, frame: int, size: int) -> torch.Tensor:
    """Return the frames, bool [T], whose samples depend on the codes [1, K, T] of `frame`; codes are below `size`."""
    changed = codes.clone()
    changed[:, :, frame] = (changed[:, :, frame] + 1) % size
    return (decode(codes) != decode(changed))[0].unflatten(0, (codes.shape[2], -1)).any(1)


def check_chunks(codec: Codec, codes: torch.Tensor, whole: torch.Tensor, tolerance: float, *sizes: int) -> None:
    """Check that chunks of each of `sizes` frames give the samples [B, n] of a one-shot decode.

    If a codec may pad an utterance's last window (`CodecSpec.can_pad`), frames that follow change no sample either.
    """
    for size in sizes or (1, 2, 5, 25):
        streamed = stream(codec, codes, chunks_of(size, codes.shape[2]))
        assert streamed.shape == whole.shape
        assert largest(streamed - whole) <= tolerance, f"chunks of {size}"
    if codec.spec.can_pad:
        first = torch.zeros(len(codes), dtype=torch.int64)
        window = Window(F.pad(codes, (0, NUM_PADDED)), 0, 0, first, codec.initial_state(len(codes)))
        samples = codec.decode(window)[0][:, : whole.shape[1]]
        assert largest(samples - whole) <= tolerance, "padded"


def check_places(
    codec: Codec, codes: torch.Tensor, whole: torch.Tensor, tolerance: float, places: Sequence[int], num_frames: int = 3
) -> None:
    """Check that utterances at different frames continue in one batch as they do unbatched.

    `whole` has the samples [B, n] of a one-shot decode of `codes` [B, K, T], and `places` the next frame of each.
    """
    left, right, hop = codec.spec.left_frames, codec.spec.right_frames, codec.spec.samples_per_frame
    states, windows = [], []
    for row, place in enumerate(places):
        before = Window(codes[row : row + 1, :, : place + right], 0, right, torch.tensor([0]), codec.initial_state(1))
        states.append(codec.decode(before)[1] if place else codec.initial_state(1))
        windows.append(codes[row, :, place - left : place + num_frames + right])
    pcm, _ = codec.decode(Window(torch.stack(windows), left, right, torch.tensor(places), torch.cat(states)))
    for row, place in enumerate(places):
        assert largest(pcm[row] - whole[row, place * hop : (place + num_frames) * hop]) <= tolerance


def check_codes(codec: Codec, pcm: np.ndarray, expected: torch.Tensor) -> None:
    """Check that samples [n] are encoded as `expected` [K, T]; the last frame may be incomplete."""
    codes = codec.encode(pcm)
    assert codes.dtype == np.int64
    assert codes.shape == (codec.spec.num_codebooks, -(-len(pcm) // codec.spec.samples_per_frame))
    assert (codes == expected.numpy()).all()


def check_fewer_codebooks(codec: Codec, full: Codec, one_shot: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Check that a codec limited to two codebooks uses the first ones of `full`."""
    codec.spec = codec.spec.with_codebooks(2)
    pcm = np.random.default_rng(0).normal(0, 0.2, 4000).astype(np.float32)
    assert (codec.encode(pcm) == full.encode(pcm)[:2]).all()
    codes = random_codes(codec, 1, 6)
    check_chunks(codec, codes, one_shot(codes), 1e-4, 2)
