"""Codecs decoded in chunks, as the decoder does, on random codes."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codecs.base import Codec, Window
from stretto.decoder.windows import Windower
from stretto.streams.layout import words_of

NUM_PADDED = 3  # frames


def random_codes(codec: Codec, batch: int, frames: int, seed: int = 0) -> Tensor:
    """Return random codes [B, K, T], or the words of random latents."""
    generator = torch.Generator().manual_seed(seed)
    if codec.spec.are_latents:
        return latent_words(torch.randn(batch, frames, codec.spec.num_codebooks, generator=generator).numpy())
    return torch.randint(codec.spec.codebook_size, (batch, codec.spec.num_codebooks, frames), generator=generator)


def latent_words(latents: np.ndarray) -> Tensor:
    """Return latents, float32 [B, T, D], as codes [B, D, T]."""
    return torch.from_numpy(words_of(latents)).transpose(1, 2).long()


def chunks_of(size: int, total: int) -> list[int]:
    """Return equal chunk sizes for at least `total` frames; the last chunk may be shorter than its size."""
    return [size] * -(-total // size)


def stream(codec: Codec, codes: Tensor, sizes: Iterable[int]) -> Tensor:
    """Decode codes [B, K, T] that arrive in chunks of the given sizes; return the samples [B, n].

    The rows of the batch arrive together and are decoded as one batch. The last chunk is cut at the end of `codes`.
    """
    batch, _, total = codes.shape
    windowers = [Windower(codec.spec) for _ in range(batch)]
    state = codec.initial_state(batch)
    parts = []
    start = 0
    for size in sizes:
        stop = min(start + size, total)
        pushed = [w.push(row[:, start:stop].numpy(), stop == total) for w, row in zip(windowers, codes, strict=True)]
        windows = [window for window in pushed if window is not None]
        if windows:
            assert len(windows) == batch
            stacked = Window(
                codes=torch.stack([torch.from_numpy(window.codes) for window in windows]),
                left=windows[0].left,
                right=windows[0].right,
                first=torch.tensor([window.first for window in windows]),
                state=state,
            )
            pcm, state = codec.decode(stacked)
            assert pcm.shape == (batch, codec.spec.num_samples(windows[0].num_frames, windows[0].right))
            parts.append(pcm)
        start = stop
        if start == total:
            break
    assert start == total
    return torch.cat(parts, dim=1)


def decode_latents(codec: Codec, latents: np.ndarray) -> Tensor:
    """Decode latents, float32 [B, T, D], at once to samples [B, n]."""
    return stream(codec, latent_words(latents), [latents.shape[1]])


def largest(difference: Tensor) -> float:
    """Return the largest absolute value."""
    return difference.abs().max().item()


def affected(codec: Codec, codes: Tensor, frame: int) -> Tensor:
    """Return the frames, bool [T], whose samples depend on the codes [1, K, T] of `frame`, in one decode."""
    changed = codes.clone()
    if codec.spec.are_latents:
        changed[:, :, frame] = codes[:, :, frame].flip(1)
    else:
        changed[:, :, frame] = (changed[:, :, frame] + 1) % codec.spec.codebook_size
    total = codes.shape[2]
    differs = (stream(codec, codes, [total]) != stream(codec, changed, [total]))[0]
    return F.pad(differs, (0, total * codec.spec.samples_per_frame - len(differs))).unflatten(0, (total, -1)).any(1)


def check_chunks(codec: Codec, codes: Tensor, whole: Tensor, tolerance: float, *chunks: Sequence[int]) -> None:
    """Assert that chunks of each of these lists of sizes give the samples [B, n] of a decode of the whole utterance.

    If a codec may pad an utterance's last window (`CodecSpec.can_pad`), frames that follow change no sample either.
    """
    for sizes in chunks:
        streamed = stream(codec, codes, sizes)
        assert streamed.shape == whole.shape
        assert largest(streamed - whole) <= tolerance, f"chunks {sizes}: {largest(streamed - whole)}"
    if codec.spec.can_pad:
        first = torch.zeros(len(codes), dtype=torch.int64)
        window = Window(F.pad(codes, (0, NUM_PADDED)), 0, 0, first, codec.initial_state(len(codes)))
        samples = codec.decode(window)[0][:, : whole.shape[1]]
        assert largest(samples - whole) <= tolerance, "padded"


def check_positions(
    codec: Codec, codes: Tensor, whole: Tensor, tolerance: float, positions: Sequence[int], num_frames: int = 3
) -> None:
    """Assert that utterances at different frames continue in one batch as they do alone.

    Args:
        codes: Codes [B, K, T].
        whole: Their samples in one decode, [B, n].
        positions: Next frame of each utterance.
        num_frames: Number of frames that are decoded in the batch.
    """
    spec = codec.spec
    hop = spec.samples_per_frame
    right = spec.right_frames
    left = min(spec.left_frames, *positions)
    states = []
    windows = []
    for row, position in enumerate(positions):
        begun = codec.initial_state(1)
        if position:
            before = Window(codes[row : row + 1, :, : position + right], 0, right, torch.tensor([0]), begun)
            begun = codec.decode(before)[1]
        states.append(begun)
        windows.append(codes[row, :, position - left : position + num_frames + right])
    pcm, _ = codec.decode(Window(torch.stack(windows), left, right, torch.tensor(positions), torch.cat(states)))
    for row, position in enumerate(positions):
        expected = whole[row, position * hop : (position + num_frames) * hop]
        assert largest(pcm[row] - expected) <= tolerance, f"utterance at frame {position}"


def random_pcm(num_samples: int) -> np.ndarray:
    """Return noise, float32 [n]."""
    return np.random.default_rng(num_samples).normal(0, 0.2, num_samples).astype(np.float32)
