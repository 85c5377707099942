"""Noise of `sampling/noise.py` in Triton, bit-identical except for logarithms."""

import triton
import triton.language as tl


@triton.jit
def mixed(x: tl.tensor) -> tl.tensor:
    """Return lowbias32 of uint32 `x`."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def stream_key_of(seed_key: tl.tensor, position: tl.tensor, stream: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.stream_keys` of one row and stream: uint32."""
    row = mixed(seed_key.to(tl.uint32, bitcast=True) + position.to(tl.uint32) * 0x9E3779B1)
    return mixed(row + stream.to(tl.uint32) * 0x85EBCA6B)


@triton.jit
def redraw_key_of(key: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.redraw_keys`."""
    return mixed(key + 0x27D4EB2F)


@triton.jit
def uniform_of(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.uniform`."""
    bits = mixed(key + token_ids.to(tl.uint32) * 0xC2B2AE35)
    return ((bits >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def gumbel_of(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """Return `sampling.noise.gumbel` with the device's logarithms."""
    return -tl.log(-tl.log(uniform_of(key, token_ids)))
