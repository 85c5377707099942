"""Sampling noise that is a function of seed, position, stream and token id.

Because there is no generator state, a request yields the same codes on its own, in any batch, after preemption and on
any device. The mixer is lowbias32 from C. Wellons' hash prospector (https://nullprogram.com/blog/2018/07/31/, public
domain).
"""

import math
from typing import Any, TypeVar

import numpy as np
import torch

Words = TypeVar("Words", torch.Tensor, np.ndarray)

# odd, as signed 32-bit
POSITION_STEP = -0x61C8864F
STREAM_STEP = -0x7A143595
TOKEN_STEP = -0x3D4D51CB
REDRAW_STEP = 0x27D4EB2F
ATTEMPT_STEP = 0x165667B1


# Steps of the hash as NumPy scalars, which take a quarter of the time of Python numbers in short operations.
_HALF = np.uint32(16)
_NEARLY_HALF = np.uint32(15)
_FRACTION = np.uint32(9)
_FIRST = np.uint32(0x7FEB352D)
_SECOND = np.uint32(0x846CA68B)
_TOKEN_STEP = np.int32(TOKEN_STEP)
# float32 1.0 as bits; the largest below 1
_ONE = np.uint32(0x3F800000)
_ALMOST_ONE = np.float32(1 - 2.0**-24)


def _mix(x: Words) -> Words:
    """Apply the hash lowbias32 to int32 `x`, in place.

    On torch's signed integers, `>>` shifts in copies of the sign bit; the masks remove them.
    """
    if isinstance(x, np.ndarray):
        bits = x.view(np.uint32)
        bits ^= bits >> _HALF
        bits *= _FIRST
        bits ^= bits >> _NEARLY_HALF
        bits *= _SECOND
        bits ^= bits >> _HALF
        return x
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= -0x7B935975
    x ^= (x >> 16) & 0xFFFF
    return x


def seed_key(seed: int) -> int:
    """Fold a seed of up to 63 bits into a signed 32-bit key."""
    low = (seed & 0xFFFFFFFF) - (1 << 32 if seed & 0x80000000 else 0)
    return int(_mix(_mix(np.array([seed >> 32], np.int32)) + np.int32(low))[0])


def attempt_keys(seed_keys: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the noise keys of rows that are sampled again with new noise, int32 [B].

    Args:
        numbers: Number of times that each row is sampled again, int32 [B]; 0 keeps its key.
    """
    return np.where(numbers == 0, seed_keys, _mix(seed_keys + numbers * np.int32(ATTEMPT_STEP)))


def stream_keys(seed_keys: Words, positions: Words, num_streams: int) -> Words:
    """Return one noise key per row and stream, int32 [B, S], for the rows' seed keys and positions, int32 [B] each."""
    rows = _mix(seed_keys + positions * POSITION_STEP)
    streams: Any = np.arange(num_streams, dtype=np.int32)
    if isinstance(rows, torch.Tensor):
        streams = torch.arange(num_streams, dtype=torch.int32, device=rows.device)
    return _mix(rows[:, None] + streams * STREAM_STEP)


def redraw_keys(keys: torch.Tensor) -> torch.Tensor:
    """Return the int32 keys for sampling a second time at the same position."""
    return _mix(keys + REDRAW_STEP)


def uniform(keys: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """Return uniform noise in (0, 1), float32 with 23 bits, for int32 `keys` and `token_ids`, which are broadcast."""
    bits = _mix(keys + token_ids.astype(np.int32) * _TOKEN_STEP).view(np.uint32)
    bits >>= _FRACTION
    bits |= _ONE  # the fraction of a float32 in [1, 2)
    noise = bits.view(np.float32)
    noise -= _ALMOST_ONE  # exact
    return noise


def gaussian(keys: Words, step: int = 0) -> Words:
    """Return standard Gaussian noise, float32, for int32 `keys` of any shape.

    The Box-Muller transform of two uniforms is computed in float64 and rounded once. Results therefore rarely differ
    in the last bit between NumPy and torch, or between devices.

    Args:
        step: Index of the draw, for several draws from the same keys.
    """
    if isinstance(keys, torch.Tensor):
        one, other = (_uniform64(keys, 2 * step + draw) for draw in (0, 1))
        return (torch.sqrt(-2 * torch.log(one)) * torch.cos(2 * math.pi * other)).float()
    one, other = (_uniform64(keys, 2 * step + draw) for draw in (0, 1))
    return (np.sqrt(-2 * np.log(one)) * np.cos(2 * math.pi * other)).astype(np.float32)


def _uniform64(keys: Words, counter: int) -> Words:
    """Return the same noise as `uniform` for the token id `counter`, but as float64."""
    offset = (counter * TOKEN_STEP + (1 << 31)) % (1 << 32) - (1 << 31)
    bits = (_mix(keys + offset) >> 9) & 0x7FFFFF
    return ((bits.double() if isinstance(bits, torch.Tensor) else bits.astype(np.float64)) + 0.5) * 2.0**-23


def gumbel(keys: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """Return standard Gumbel noise, like `uniform`; argmax(logits + noise) is a draw from the logits' softmax."""
    noise = uniform(keys, token_ids)
    for _ in range(2):  # on an AMD processor with AVX-512, NumPy's logarithm takes 0.3 ns per element, torch's 0.9
        np.negative(np.log(noise, out=noise), out=noise)
    return noise
