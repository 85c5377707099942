"""Sampling noise of vLLM's kernels as a function of (seed, position, token), equal to that on a GPU.

Original: vLLM 0.32.0, `murmur3_uniform32` and `gumbel_noised_argmax` in `vllm/v1/worker/gpu/sample/gumbel.py`.
"""

from functools import cache

import numpy as np

LOW_16, SHIFT_13, SHIFT_16 = np.uint32(0xFFFF), np.uint32(13), np.uint32(16)


def _rotate_left(value: np.ndarray, bits: int) -> np.ndarray:
    return (value << np.uint32(bits)) | (value >> np.uint32(32 - bits))


def _mix_key(key: np.ndarray) -> np.ndarray:
    return _rotate_left(key * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)


def _mix(state: np.ndarray, mixed_key: np.ndarray) -> np.ndarray:
    return _rotate_left(state ^ mixed_key, 13) * np.uint32(5) + np.uint32(0xE6546B64)


@cache
def _mixed_token_ids(vocab_size: int) -> np.ndarray:
    return _mix_key(np.arange(vocab_size, dtype=np.uint32))


def uniform(seeds: np.ndarray, positions: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return murmur3 of (seed, position, token) in (0, 1): int64 [B], int64 [B] -> float32 [B, V]."""
    state = np.zeros(len(seeds), dtype=np.uint32)
    for word in (seeds, seeds >> 32, positions):
        state = _mix(state, _mix_key(word.astype(np.uint32)))
    # murmur3 finishes with the input length: 16 bytes
    state = _mix(state[:, None], _mixed_token_ids(vocab_size)) ^ SHIFT_16
    state ^= state >> SHIFT_16
    state *= np.uint32(0x85EBCA6B)
    state ^= state >> SHIFT_13
    state *= np.uint32(0xC2B2AE35)
    state ^= state >> SHIFT_16
    high, low = (state >> SHIFT_16).astype(np.float32), (state & LOW_16).astype(np.float32)
    return high * np.float32(2**-16) + (low + np.float32(0.5)) * np.float32(2**-32)


def gumbel(values: np.ndarray) -> np.ndarray:
    """Return -log(-log(1 - value)) for values in (0, 1), below 1/4 by the series of log(1 - x), as the kernel does."""
    series = np.full_like(values, 1 / 8)
    for n in range(7, 0, -1):
        series *= values
        series += np.float32(1 / n)
    direct = np.log(np.maximum(np.float32(1) - values, np.float32(2**-24)))
    return -np.log(-np.where(values < np.float32(0.25), -values * series, direct))
