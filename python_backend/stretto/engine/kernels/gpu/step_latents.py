"""Triton kernel for a step's latent inputs: noise, guidance and solver steps."""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.draw import mixed, real_of, stream_key_of
from stretto.engine.kernels.gpu.step_draw import AUDIO_TEMPERATURE, GUIDANCE, LATENT_STEPS, SEED_KEY


@triton.jit
def _wide_uniform_of(key: tl.tensor, counter: tl.constexpr) -> tl.tensor:
    """Return the uniform noise, float64, that `sampling.uniform` gives the token id `counter` with this key."""
    bits = mixed(key + counter * 0xC2B2AE35)
    return ((bits >> 9).to(tl.int32).to(tl.float64) + 0.5) * 1.1920928955078125e-07


@triton.jit
def gaussian_of(key: tl.tensor) -> tl.tensor:
    """Return standard Gaussian noise, float32, as `sampling.gaussian` does: in float64 and rounded once."""
    length = tl.sqrt(-2.0 * tl.log(_wide_uniform_of(key, 0)))
    return (length * tl.cos(6.283185307179586 * _wide_uniform_of(key, 1))).to(tl.float32)


@triton.jit
def latent_inputs_kernel(
    noise: tl.tensor,  # [N, D] float32, written
    guidance: tl.tensor,  # [N] float32, written: guidance scale of the request
    steps: tl.tensor,  # [N] int64, written: solver steps
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    num_rows: tl.constexpr,
    size: tl.constexpr,  # D
    block: tl.constexpr,  # at least D
) -> None:
    row = tl.program_id(0)
    lanes = tl.arange(0, block)
    mine = plan + row
    position = tl.load(lengths + row).to(tl.int64)
    keys = stream_key_of(tl.load(mine + SEED_KEY * num_rows), position, lanes + 1)
    deviation = tl.sqrt_rn(real_of(mine + AUDIO_TEMPERATURE * num_rows))
    tl.store(noise + row * size + lanes, gaussian_of(keys) * deviation, mask=lanes < size)
    tl.store(guidance + row, real_of(mine + GUIDANCE * num_rows))
    tl.store(steps + row, tl.maximum(tl.load(mine + LATENT_STEPS * num_rows), 1).to(tl.int64))
