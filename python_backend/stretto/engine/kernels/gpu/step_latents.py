"""Triton kernel for a step's latent inputs: noise, previous latents, guidance and solver steps."""

import triton
import triton.language as tl

from stretto.engine.kernels.gpu.draw import mixed, stream_key_of
from stretto.engine.kernels.gpu.step_draw import (
    AUDIO_END,
    AUDIO_MAX,
    AUDIO_START,
    AUDIO_TEMPERATURE,
    DRAWS,
    GUIDANCE,
    LATENT_STEPS,
    OTHER,
    ROLE,
    SEED_KEY,
    SLOT,
    real_of,
)

NO_MARK = -1


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
    guidance: tl.tensor,  # [N] float32, written: guidance scale, 1 for rows that are not guided
    numbers: tl.tensor,  # [4, N] int64, written: solver steps, row of the unconditional request, slot, position
    flags: tl.tensor,  # [2, N] bool, written: 1 in the first frame of a stretch; 1 if the row is a frame
    plan: tl.tensor,  # `step_draw.py`, [C, N] int32
    lengths: tl.tensor,  # [N] int32
    state: tl.tensor,  # [R, 8] int64
    codes: tl.tensor,  # [R, T + 1, S - 1] int32
    tokens: tl.tensor,  # stream 0, [R, T, 1] int32
    first: tl.tensor,  # sampled ids of stream 0, [N] int32
    rules: tl.constexpr,
    num_drawn: tl.constexpr,  # D
    num_before: tl.constexpr,  # W
    tokens_stride: tl.constexpr,
    begin: tl.constexpr,  # id of the mark that begins a stretch, or NO_MARK
    block: tl.constexpr,  # at least S - 1
) -> None:
    row, lanes = tl.program_id(0), tl.arange(0, block)
    mine = plan + row
    slot, position = tl.load(mine + SLOT * rules.num_rows).to(tl.int64), tl.load(lengths + row).to(tl.int64)
    other, scale = tl.load(mine + OTHER * rules.num_rows), real_of(mine + GUIDANCE * rules.num_rows)
    previous = tl.maximum(position - 1, 0)
    keys = stream_key_of(tl.load(mine + SEED_KEY * rules.num_rows), position, lanes + 1)
    deviation = tl.sqrt_rn(real_of(mine + AUDIO_TEMPERATURE * rules.num_rows))
    tl.store(noise + row * num_drawn + lanes, gaussian_of(keys) * deviation, mask=lanes < num_drawn)
    if num_before > 0:
        place = codes + slot * rules.codes_stride + previous * rules.num_others + lanes
        words = tl.load(place, mask=lanes < num_before, other=0)
        tl.store(before + row * num_before + lanes, words.to(tl.float32, bitcast=True), mask=lanes < num_before)
    begins = tl.load(tokens + slot * tokens_stride + previous) == begin
    if begin >= 0:
        scale = tl.where(begins | (other != row), scale, 1.0)
    tl.store(guidance + row, scale)
    steps = tl.maximum(tl.load(mine + LATENT_STEPS * rules.num_rows), 1)
    tl.store(numbers + row, steps.to(tl.int64))
    tl.store(numbers + rules.num_rows + row, other.to(tl.int64))
    tl.store(numbers + 2 * rules.num_rows + row, slot)
    tl.store(numbers + 3 * rules.num_rows + row, position)
    at = state + slot * rules.state_stride
    start, end = tl.load(at + AUDIO_START), tl.load(at + AUDIO_END)
    in_audio = (start >= 0) & (position >= start) & (end < 0)
    is_over = (position - start >= tl.load(mine + AUDIO_MAX * rules.num_rows)) | (position >= rules.family.audio_limit)
    is_frame = (tl.load(mine + ROLE * rules.num_rows) == DRAWS) & in_audio & (is_over == 0)
    tl.store(flags + row, begins)
    tl.store(flags + rules.num_rows + row, is_frame & (tl.load(first + row) == rules.family.first_start))
