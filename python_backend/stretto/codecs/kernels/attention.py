"""Kernels of a codec's transformer: attention over a window of the state and the new steps, and its rotations.

A program attends from 16 steps to the steps before them, 32 at once. Both begin at multiples of these numbers, counted
from the beginning of the utterance. So the sums of a step have one order, whichever steps are in its window. A block
without a visible step changes no sum.
"""

import triton
import triton.language as tl
from torch import Tensor

from stretto.codecs.kernels.signals import BLOCK, keep_last, row_of

QUERIES = 16
KEYS = 32
OPTIONS = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}  # with four warps, registers are spilled


def attend_on_device(
    out: Tensor,
    x: Tensor,
    before: Tensor,
    after: Tensor,
    first: Tensor,
    rows: Tensor | None,
    num_before: int,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """Write the attention outputs of the new steps, and the last keys and values to the next state.

    Args:
        out: Outputs, float32 [B, n, heads · D]; written.
        x: Queries, keys and values, float32 [B, n, (heads + 2 · kv_heads) · D].
        before: Keys and values of the last steps before the window, [B, num_before · 2 · kv_heads · D].
        after: The same after the window; written.
        first: Position of the first step, [B].
        num_before: Number of earlier steps that a step attends to.
    """
    num_batch, num_inputs, width = x.shape
    head_dim = width // (num_heads + 2 * num_kv_heads)
    grid = triton.cdiv(num_inputs, QUERIES) + 1, num_batch * num_heads
    attention_kernel[grid](
        out,
        x,
        before,
        after,
        first,
        rows,
        0 if rows is None else rows.stride(0),
        before.stride(0),
        after.stride(0),
        num_batch,
        num_inputs,
        num_before,
        num_heads,
        num_kv_heads,
        head_dim**-0.5,
        head_dim,
        QUERIES,
        KEYS,
        **OPTIONS,
    )


@triton.jit(do_not_specialize=["rows_after", "num_batch", "num_inputs"])
def attention_kernel(
    out: tl.tensor,  # [B, n, heads · D], written
    x: tl.tensor,  # [B, n, (heads + 2 · kv_heads) · D]
    before: tl.tensor,  # [R, num_before, 2 · kv_heads · D] at the distance `before_batch`
    after: tl.tensor,  # the same, written
    first: tl.tensor,  # [B]
    state_rows: tl.tensor,  # [2, B] at the distance `rows_after`, or None
    rows_after: tl.tensor,
    before_batch: tl.tensor,
    after_batch: tl.tensor,
    num_batch: tl.tensor,
    num_inputs: tl.tensor,  # n
    num_before: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    queries: tl.constexpr,
    keys: tl.constexpr,
) -> None:
    batch = (tl.program_id(1) // num_heads).to(tl.int64)
    head = tl.program_id(1) % num_heads
    kv_head = head // (num_heads // num_kv_heads)
    width = (num_heads + 2 * num_kv_heads) * head_dim
    dim = tl.arange(0, head_dim)[None, :]
    before_row = before + row_of(state_rows, batch) * before_batch
    position = tl.load(first + batch).to(tl.int32)
    begin = (position // queries + tl.program_id(0)) * queries  # position of the first query
    step = begin - position + tl.arange(0, queries)[:, None]
    is_query = (step >= 0) & (step < num_inputs)
    of_query = x + (batch * num_inputs + step) * width + head * head_dim
    query = tl.load(of_query + dim, is_query, 0.0) * scale
    highest = tl.full((queries, 1), float("-inf"), tl.float32)
    weights = tl.zeros((queries, 1), tl.float32)
    total = tl.zeros((queries, head_dim), tl.float32)
    for at in range(tl.maximum(begin - num_before, 0) // keys * keys, begin + queries, keys):
        key_at = at + tl.arange(0, keys)[:, None]
        distance = begin + tl.arange(0, queries)[:, None] - (at + tl.arange(0, keys))[None, :]
        is_seen = is_query & (distance >= 0) & (distance <= num_before)
        key_step = key_at - position
        is_key = (key_step < num_inputs) & (key_step >= -num_before)
        of_state = before_row + (key_step + num_before) * (2 * num_kv_heads * head_dim)
        of_new = x + (batch * num_inputs + key_step) * width + num_heads * head_dim
        of_key = tl.where(key_step < 0, of_state, of_new) + kv_head * head_dim + dim
        key = tl.load(of_key, is_key, 0.0)
        value = tl.load(of_key + num_kv_heads * head_dim, is_key, 0.0)
        score = tl.where(is_seen, tl.dot(query, tl.trans(key), input_precision="ieee"), float("-inf"))
        top = tl.maximum(highest, tl.max(score, 1)[:, None])
        shift = tl.where(top == float("-inf"), 0.0, top)
        factor = tl.exp(highest - shift)
        share = tl.exp(score - shift)
        weights = weights * factor + tl.sum(share, 1)[:, None]
        total = total * factor + tl.dot(share, value, input_precision="ieee")
        highest = top
    of_out = out + (batch * num_inputs + step) * (num_heads * head_dim) + head * head_dim + dim
    tl.store(of_out, total / tl.where(is_query, weights, 1.0), is_query)
    keep_last(
        x + num_heads * head_dim, before, after, None, state_rows, rows_after, before_batch, after_batch, num_batch,
        num_inputs, width, 2 * num_kv_heads * head_dim, num_before, 0, 0, BLOCK,
    )  # fmt: skip


def rotate_on_device(cosines: Tensor, sines: Tensor, first: Tensor, frequencies: Tensor) -> None:
    """Write the cosines and sines of rotary embeddings, whose angles are rounded to float32, as in training.

    Args:
        cosines: Cosines of n steps from each position on, float32 [B, n, D / 2]; written.
        sines: Sines of these steps; written.
        first: Position of the first step, int64 [B].
        frequencies: Frequencies, float32 [D / 2].
    """
    num_batch, num_steps, half = cosines.shape
    grid = (triton.cdiv(num_batch * num_steps * half, BLOCK.value),)
    rotation_kernel[grid](cosines, sines, first, frequencies, num_batch, num_steps, half, BLOCK, num_warps=4)


@triton.jit(do_not_specialize=["num_batch", "num_steps"])
def rotation_kernel(
    cosines: tl.tensor,  # [B, n, half], written
    sines: tl.tensor,  # the same
    first: tl.tensor,  # [B]
    frequencies: tl.tensor,  # [half]
    num_batch: tl.tensor,
    num_steps: tl.tensor,
    half: tl.tensor,
    block: tl.constexpr,
) -> None:
    at = tl.program_id(0) * block + tl.arange(0, block)
    is_inside = at < num_batch * num_steps * half
    row = at // half
    position = tl.load(first + row // num_steps, is_inside, 0) + row % num_steps
    angle = position.to(tl.float32) * tl.load(frequencies + at % half, is_inside, 0.0)
    tl.store(cosines + at, tl.cos(angle), is_inside)
    tl.store(sines + at, tl.sin(angle), is_inside)
