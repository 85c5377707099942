"""Decoding of chunks of codes by a codec as in the decoder: windows are decoded, and their samples concatenated."""

from collections.abc import Iterable

import torch
from torch import Tensor

from stretto.codecs.base import Codec, Window
from stretto.decoder.streaming import Windower


def random_codes(codec: Codec, batch: int, frames: int, seed: int = 0) -> Tensor:
    """Return random codes [B, K, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.spec.codebook_size, (batch, codec.spec.num_codebooks, frames), generator=generator)


def stream(codec: Codec, codes: Tensor, sizes: Iterable[int]) -> Tensor:
    """Return the samples [B, n] of codes [B, K, T] that arrive in chunks of the given sizes.

    The rows of the batch arrive together and are decoded as one batch. The last chunk ends with `codes`.
    """
    batch, _, total = codes.shape
    windowers = [Windower(codec.spec) for _ in range(batch)]
    state, parts, start = codec.initial_state(batch), [], 0
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


def chunks_of(size: int, total: int) -> list[int]:
    """Return chunk sizes for `total` frames: all equal, so the last chunk may be shorter than its size."""
    return [size] * -(-total // size)
