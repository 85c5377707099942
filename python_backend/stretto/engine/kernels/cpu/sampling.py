"""CPU versions of vLLM's sampling kernels and their noise."""

from functools import cache

import numpy as np
import torch

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
    """Return uniform noise in (0, 1), float32 [B, V]: murmur3 of seed [B], position [B] and token id."""
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
    """Return Gumbel noise -log(-log(1 - value)) for values in (0, 1).

    As in the kernel, log(1 - x) is computed by its series below 1/4.
    """
    series = np.full_like(values, 1 / 8)
    for n in range(7, 0, -1):
        series *= values
        series += np.float32(1 / n)
    direct = np.log(np.maximum(np.float32(1) - values, np.float32(2**-24)))
    return -np.log(-np.where(values < np.float32(0.25), -values * series, direct))


def apply_temperature(
    logits: torch.Tensor,  # [B, V], written
    logits_stride: int,
    expanded_idx_mapping: torch.Tensor,  # [B] int64
    temperature: torch.Tensor,  # [max B] float32
    vocab_size: int,
    **launch: object,
) -> None:
    """Divide each row by its temperature; 0 (greedy) leaves the row unchanged."""
    divisor = temperature[expanded_idx_mapping]
    logits.div_(divisor.masked_fill_(divisor == 0, 1.0)[:, None])


def apply_min_p(
    logits: torch.Tensor,  # [B, V], written
    logits_stride: int,
    expanded_idx_mapping: torch.Tensor,  # [B] int64
    min_p: torch.Tensor,  # [max B] float32
    vocab_size: int,
    **launch: object,
) -> None:
    """Mask tokens less probable than `min_p` times the most probable one."""
    threshold = logits.amax(dim=-1).float() + min_p[expanded_idx_mapping].log()
    logits.masked_fill_(logits < threshold[:, None], float("-inf"))


def apply_top_k_top_p(
    logits: torch.Tensor,  # [B, V], written
    buffer: torch.Tensor,
    percentile_to_std: torch.Tensor,
    normal_cdf_to_sigma: torch.Tensor,
    k: torch.Tensor | None,  # [B] int32
    p: torch.Tensor | None,  # [B] float32
    mask_value: float,
    num_compute_units: int,
) -> None:
    """Keep the `k` most probable tokens of each row, and among them the smallest set whose probability is at least `p`.

    This replaces the function that launches the kernel, because the kernel itself (`topk_topp_triton.py`) does not run
    in Triton's interpreter.
    """
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    assert mask_value == float("-inf")
    apply_top_k_top_p_pytorch(logits, k, p, allow_cpu_sync=True)


def gumbel_sample(
    local_argmax: torch.Tensor,  # [B, blocks] int64, written
    argmax_stride: int,
    local_max: torch.Tensor,  # [B, blocks] float32, written
    max_stride: int,
    logits_cache: None,
    cache_stride_0: int,
    cache_stride_1: int,
    cache_column: None,
    cache_source: None,
    cache_source_stride: int,
    logits: torch.Tensor,  # [B, V]
    logits_stride: int,
    expanded_idx_mapping: torch.Tensor,  # [B] int64; negative: greedy
    seeds: torch.Tensor,  # [max B] int64
    pos: torch.Tensor,  # [B] int64
    temperature: torch.Tensor,  # [max B] float32; 0: greedy
    vocab_size: int,
    IS_DRAFTING: bool,
    APPLY_TEMPERATURE: bool,
    USE_FP64: bool,
    **launch: object,
) -> None:
    """Sample one token per row with Gumbel noise; write it to the first block, and -inf to the others."""
    assert logits_cache is None, "speculative decoding is not covered without a GPU"
    assert not IS_DRAFTING, "speculative decoding is not covered without a GPU"
    assert not USE_FP64, "fp64 sampling noise is not covered without a GPU"
    slots, scores = expanded_idx_mapping.numpy(), logits.float().numpy()
    temperatures = np.where(slots >= 0, temperature.numpy()[slots], np.float32(0))
    drawn = np.flatnonzero(temperatures)
    if len(drawn):
        noisy = scores[drawn]
        if APPLY_TEMPERATURE:
            noisy /= temperatures[drawn, None]
        noisy += gumbel(uniform(seeds.numpy()[slots[drawn]], pos.numpy()[drawn], vocab_size))
        scores = scores.copy()
        scores[drawn] = noisy
    winners = scores.argmax(axis=1)
    local_argmax.numpy()[:, 0] = winners
    local_max[:, 1:] = float("-inf")
    local_max.numpy()[:, 0] = scores[np.arange(len(scores)), winners]


def apply_logit_bias(
    logits: torch.Tensor,  # [B, V], written
    logits_stride: int,
    vocab_size: int,
    expanded_idx_mapping: torch.Tensor,  # [B] int64
    num_allowed_token_ids: torch.Tensor,  # [max B] int32; 0: all
    allowed_token_ids: torch.Tensor,  # [max B, n] int32
    allowed_stride: int,
    num_logit_bias: torch.Tensor,  # [max B] int32
    bias_token_ids: torch.Tensor,  # [max B, n] int32
    bias_ids_stride: int,
    bias: torch.Tensor,  # [max B, n] float32
    bias_stride: int,
    pos: torch.Tensor,  # [B] int64
    min_lens: torch.Tensor,  # [max B] int32
    num_stop_token_ids: torch.Tensor,  # [max B] int32
    restore_when_all_masked: torch.Tensor,  # [max B] int32
    stop_token_ids: torch.Tensor,  # [max B, n] int32
    stop_stride: int,
    CHECK_ALL_MASKED_ROWS: bool,
    **launch: object,
) -> None:
    """Keep only allowed tokens, add the biases, and mask stop tokens before the minimum length."""
    for row, slot in enumerate(expanded_idx_mapping.tolist()):
        scores = logits[row]
        if count := int(num_allowed_token_ids[slot]):
            allowed = allowed_token_ids[slot, :count]
            kept = scores[allowed]
            scores.fill_(float("-inf"))
            scores[allowed] = kept
        if count := int(num_logit_bias[slot]):
            scores[bias_token_ids[slot, :count]] += bias[slot, :count]
        count = int(num_stop_token_ids[slot])
        if count and pos[row] + 1 < min_lens[slot]:
            stops = stop_token_ids[slot, :count]
            kept = scores[stops]
            scores[stops] = float("-inf")
            if CHECK_ALL_MASKED_ROWS and restore_when_all_masked[slot] and scores.max() == float("-inf"):
                scores[stops] = torch.where(kept.isfinite(), kept, float("-inf"))


def topk_log_softmax(
    output: torch.Tensor,  # [B, n] float32, written
    logits: torch.Tensor,  # [B, V]
    logits_stride: int,
    token_ids: torch.Tensor,  # [B, n] int64
    token_ids_stride: int,
    num_token_ids: int,
    vocab_size: int,
    **launch: object,
) -> None:
    """Compute the log-probabilities of some tokens of each row."""
    scores = logits.float()
    torch.sub(scores.gather(1, token_ids), scores.logsumexp(dim=1, keepdim=True), out=output)


def ranks(
    output: torch.Tensor,  # [B] int64, written
    logits: torch.Tensor,  # [B, V]
    logits_stride: int,
    token_ids: torch.Tensor,  # [B] int64
    vocab_size: int,
    **launch: object,
) -> None:
    """Count the tokens of each row that are at least as probable as the given one."""
    output.copy_((logits >= logits.gather(1, token_ids[:, None])).sum(dim=1))
