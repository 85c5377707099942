"""Triton kernel for a step's latent inputs: noise, previous latents, guidance and solver steps."""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.draw import mixed, stream_key_of
from stretto.engine.kernels.gpu.step_draw import (
    AUDIO_TEMPERATURE,
    GUIDANCE,
    LATENT_STEPS,
    SEED_KEY,
    SLOT,
    real_of,
)


@triton.jit
def _wide_uniform_of(key: tl.tensor, counter: tl.constexpr) -> tl.tensor:
    """Return uniform noise in float64, as `sampling.uniform` does for the token id `counter`."""
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
    before: tl.tensor,  # [N, W] float32, written: latent of the previous row; or empty
    guidance: tl.tensor,  # [N] float32, written: guidance scale of the request
    steps: tl.tensor,  # [N] int64, written: solver steps
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    codes: tl.tensor,  # [R, T + 1, S - 1] int32
    rules: tl.constexpr,
    num_drawn: tl.constexpr,  # D
    num_before: tl.constexpr,  # W
    block: tl.constexpr,  # at least S - 1
) -> None:
    row, lanes = tl.program_id(0), tl.arange(0, block)
    mine = plan + row
    slot, position = tl.load(mine + SLOT * rules.num_rows).to(tl.int64), tl.load(lengths + row).to(tl.int64)
    keys = stream_key_of(tl.load(mine + SEED_KEY * rules.num_rows), position, lanes + 1)
    deviation = tl.sqrt_rn(real_of(mine + AUDIO_TEMPERATURE * rules.num_rows))
    tl.store(noise + row * num_drawn + lanes, gaussian_of(keys) * deviation, mask=lanes < num_drawn)
    if num_before > 0:
        place = codes + slot * rules.codes_stride + tl.maximum(position - 1, 0) * rules.num_others + lanes
        words = tl.load(place, mask=lanes < num_before, other=0)
        tl.store(before + row * num_before + lanes, words.to(tl.float32, bitcast=True), mask=lanes < num_before)
    tl.store(guidance + row, real_of(mine + GUIDANCE * rules.num_rows))
    tl.store(steps + row, tl.maximum(tl.load(mine + LATENT_STEPS * rules.num_rows), 1).to(tl.int64))
