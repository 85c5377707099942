"""CPU versions of vLLM's kernels for block tables, staged writes, input batches, and sampling."""

import ctypes
from functools import cache, lru_cache

import numpy as np
import torch

INT32S = ctypes.c_int32 * (1 << 30)  # one type for tables of any size, because ctypes keeps each type that it makes


@lru_cache(maxsize=4096)  # addresses stay the same from step to step; making an array takes longer than reading a row
def _int32s(address: int) -> np.ndarray:
    """Return an int32 array that begins at a memory address, and whose length is not that of the data."""
    return np.ctypeslib.as_array(INT32S.from_address(address))


def _table(address: int, num_rows: int, stride: int) -> np.ndarray:
    """Return the int32 block table [num_rows, stride] at a memory address, which kernels get instead of a tensor."""
    return _int32s(address)[: num_rows * stride].reshape(num_rows, stride)


def apply_write(
    output: torch.Tensor,  # [rows(, columns)], or with MULTI_GROUP [G] uint64 addresses of int32 tables
    output_stride: int | torch.Tensor,
    indices: torch.Tensor,  # [n] int32
    starts: torch.Tensor,  # [n] int32
    contents: torch.Tensor,  # [cu_lens[-1]]
    cu_lens: torch.Tensor,  # [n] int32
    group_ids: torch.Tensor | None,
    MULTI_GROUP: bool = False,
    **launch: object,
) -> None:
    """Apply staged writes: write i puts its part of `contents` at (indices[i], starts[i])."""
    rows = indices.numpy()
    columns = starts.numpy()
    values = contents.numpy()
    if not MULTI_GROUP and output.ndim == 1:
        assert len(values) == len(rows), "a write to a flat tensor is one element"
        output.numpy()[rows + columns] = values
        return
    begin = 0
    for i, end in enumerate(cu_lens.tolist()):
        if MULTI_GROUP:
            assert isinstance(output_stride, torch.Tensor)
            assert group_ids is not None
            group = int(group_ids[i])
            row = _table(int(output[group]), int(rows[i]) + 1, int(output_stride[group]))[-1]
        else:
            row = output.numpy()[rows[i]]
        row[columns[i] : columns[i] + end - begin] = values[begin:end]
        begin = end


def gather_block_tables(
    idx_mapping: torch.Tensor,  # [B] int64
    source_addresses: torch.Tensor,  # [G] uint64
    target_addresses: torch.Tensor,  # [G] uint64
    strides: torch.Tensor,  # [G] int64
    num_blocks: torch.Tensor,  # [G, max B] int32
    num_blocks_stride: int,
    num_reqs: int,
    **launch: object,
) -> None:
    """Copy the batch's block-table rows, in batch order, and fill unused rows with 0."""
    slots = idx_mapping.numpy()
    places = zip(source_addresses.tolist(), target_addresses.tolist(), strides.tolist(), strict=True)
    for lengths, (source, target, stride) in zip(num_blocks.numpy(), places, strict=True):
        source_rows, target_rows = (_table(address, len(lengths), stride) for address in (source, target))
        used = lengths[slots].max(initial=0)
        target_rows[:num_reqs, :used] = source_rows[slots, :used]
        target_rows[num_reqs:] = 0


def compute_slot_mappings(
    max_num_tokens: int,
    idx_mapping: torch.Tensor,  # [B] int64; negative: a row without blocks
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    pos: torch.Tensor,  # [N] int64
    table_addresses: torch.Tensor,  # [G] uint64
    strides: torch.Tensor,  # [G] int64
    block_sizes: torch.Tensor,  # [G] int32
    enabled: torch.Tensor,  # [G] bool
    context_sharded: torch.Tensor,
    slot_mappings: torch.Tensor,  # [G, max_num_tokens] int64, written
    slot_stride: int,
    context_rank: int,
    CP_SIZE: int,
    PAD_ID: int,
    **launch: object,
) -> None:
    """Compute the KV-cache slot of each token per group, and write `PAD_ID` after the last token."""
    assert CP_SIZE == 1, "context parallelism is not supported without a GPU"
    slots = idx_mapping.numpy()
    num_tokens = int(query_start_loc[len(slots)])
    if num_tokens != len(slots):  # a request has several tokens; each has at least one
        slots = np.repeat(slots, np.diff(query_start_loc.numpy()[: len(slots) + 1]))
    positions = pos.numpy()[:num_tokens]
    num_rows = int(slots.max(initial=0)) + 1
    groups = zip(table_addresses.tolist(), strides.tolist(), block_sizes.tolist(), enabled.tolist(), strict=True)
    for out, (address, stride, block_size, is_enabled) in zip(slot_mappings.numpy(), groups, strict=True):
        out[num_tokens:max_num_tokens] = PAD_ID
        if not is_enabled:
            out[:num_tokens] = PAD_ID
            continue
        blocks, offsets = np.divmod(positions, block_size)
        places = _table(address, num_rows, stride)[slots, blocks].astype(np.int64) * block_size + offsets
        out[:num_tokens] = np.where(slots >= 0, places, PAD_ID)


def prepare_prefill_inputs(
    input_ids: torch.Tensor,  # [max N] int32, written
    next_prefill_tokens: torch.Tensor,  # [lookahead, max B] int32, written
    next_stride: int,
    num_lookahead: int,
    idx_mapping: torch.Tensor,  # [B] int64
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    all_token_ids: torch.Tensor,  # [max B, max_model_len] int32
    all_stride: int,
    prefill_lens: torch.Tensor,  # [max B] int32
    num_computed_tokens: torch.Tensor,  # [max B] int32
    **launch: object,
) -> None:
    """Copy the next tokens of prefilling requests to the batch, and store the tokens after them."""
    ids = input_ids.numpy()
    following = next_prefill_tokens.numpy()
    tokens = all_token_ids.numpy()
    slots = idx_mapping.numpy()
    starts = query_start_loc.numpy()
    for row in np.flatnonzero(num_computed_tokens.numpy()[slots] < prefill_lens.numpy()[slots]):
        slot = slots[row]
        start = starts[row]
        stop = starts[row + 1]
        done = int(num_computed_tokens[slot])
        prefill_len = int(prefill_lens[slot])
        end = done + stop - start
        ids[start:stop] = tokens[slot, done:end]
        ahead = tokens[slot, end : min(end + num_lookahead, prefill_len)]
        following[:, slot] = 0
        following[: len(ahead), slot] = ahead


def prepare_pos_seq_lens(
    pos: torch.Tensor,  # [max N] int64, written
    seq_lens: torch.Tensor,  # [max B] int32, written
    idx_mapping: torch.Tensor,  # [B] int64
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    num_computed_tokens: torch.Tensor,  # [max B] int32
    max_num_reqs: int,
    **launch: object,
) -> None:
    """Compute the position of each token and the length of each request (0 for unused entries)."""
    num_reqs = idx_mapping.shape[0]
    starts = query_start_loc.numpy()[: num_reqs + 1]
    computed = num_computed_tokens.numpy()[idx_mapping.numpy()]
    lengths = seq_lens.numpy()
    lengths[num_reqs:max_num_reqs] = 0
    if starts[-1] == num_reqs:  # one token for each request
        np.add(computed, 1, out=lengths[:num_reqs])
        pos.numpy()[:num_reqs] = computed
        return
    query_lens = np.diff(starts)
    np.add(computed, query_lens, out=lengths[:num_reqs])
    offsets = np.repeat(computed - starts[:-1], query_lens)
    np.add(offsets, np.arange(starts[-1]), out=pos.numpy()[: starts[-1]])


def combine_sampled_and_draft_tokens(
    input_ids: torch.Tensor,  # [max N] int32, written
    idx_mapping: torch.Tensor,  # [B] int64
    last_sampled_tokens: torch.Tensor,  # [max B, 1] int64
    query_start_loc: torch.Tensor,  # [>= B + 1] int32
    seq_lens: torch.Tensor,  # [>= B] int32
    prefill_len: torch.Tensor,  # [max B] int32
    draft_tokens: torch.Tensor,
    draft_stride: int,
    cu_num_logits: torch.Tensor,  # [B + 1] int32
    logits_indices: torch.Tensor,  # [B] int64, written
    NUM_NEW_SAMPLED_TOKENS: int = 1,
    **launch: object,
) -> None:
    """Insert the previously sampled token of decoding requests, and compute each request's logits index."""
    slots = idx_mapping.numpy()
    assert draft_tokens.shape[-1] == 0, "speculative decoding is not supported without a GPU"
    assert NUM_NEW_SAMPLED_TOKENS == 1, "a step that samples nothing is not supported without a GPU"
    last = query_start_loc.numpy()[1 : len(slots) + 1] - 1
    logits_indices.numpy()[:] = last
    decoding = seq_lens.numpy()[: len(slots)] > prefill_len.numpy()[slots]
    input_ids.numpy()[last[decoding]] = last_sampled_tokens.numpy()[slots[decoding], 0]


def get_num_sampled_and_rejected(
    num_sampled: torch.Tensor,  # [B], written
    num_rejected: torch.Tensor,  # [B], written
    seq_lens: torch.Tensor,  # [>= B] int32
    cu_num_logits: torch.Tensor,  # [B + 1] int32
    idx_mapping: torch.Tensor,  # [B] int64
    prefill_len: torch.Tensor,  # [max B] int32
) -> None:
    """Compute each request's number of rejected tokens; set both counts to 0 for requests that are still prefilling."""
    slots = idx_mapping.numpy()
    prefilling = seq_lens.numpy()[: len(slots)] < prefill_len.numpy()[slots]
    sampled = num_sampled.numpy()
    rejected = num_rejected.numpy()
    sampled[prefilling] = 0
    np.subtract(np.diff(cu_num_logits.numpy()), sampled, out=rejected)
    rejected[prefilling] = 0


def post_update(
    idx_mapping: torch.Tensor,  # [B] int64; negative: skip
    num_computed_tokens: torch.Tensor,  # [max B] int32, written
    last_sampled_tokens: torch.Tensor,  # [max B, 1] int64, written
    output_bin_counts: torch.Tensor | None,  # [max B, V] int32, written
    bin_stride: int,
    sampled_tokens: torch.Tensor,  # [B, W] int64
    sampled_stride: int,
    num_sampled: torch.Tensor,  # [B]
    num_rejected: torch.Tensor,  # [B]
    query_start_loc: torch.Tensor | None,  # [>= B + 1] int32
    all_token_ids: torch.Tensor,  # [max B, max_model_len] int32, written
    all_stride: int,
    total_len: torch.Tensor,  # [max B] int32, written
    **launch: object,
) -> None:
    """Append up to W sampled tokens of each request to its slot, and update the number of computed tokens."""
    slots = idx_mapping.numpy()
    tokens = sampled_tokens.numpy()
    counts = num_sampled.numpy()
    delta = -num_rejected.numpy()
    lengths = total_len.numpy()
    if query_start_loc is not None:
        starts = query_start_loc.numpy()[: len(slots) + 1]
        delta += starts[1:] - starts[:-1]
    if slots.min(initial=0) < 0:
        is_kept = slots >= 0
        slots, tokens, counts, delta = (rows[is_kept] for rows in (slots, tokens, counts, delta))
    num_computed_tokens.numpy()[slots] += delta
    if not counts.all():
        is_kept = counts > 0
        slots, tokens, counts = (rows[is_kept] for rows in (slots, tokens, counts))
    of_row = slots
    new = tokens[:, 0]
    places = lengths[slots]
    last = new
    if tokens.shape[1] > 1:
        row, column = np.nonzero(np.arange(tokens.shape[1]) < counts[:, None])
        of_row = slots[row]
        new = tokens[row, column]
        places = places[row] + column
        last = tokens[np.arange(len(tokens)), counts - 1]
    last_sampled_tokens.numpy()[slots, 0] = last
    all_token_ids.numpy()[of_row, places] = new
    lengths[slots] += counts
    if output_bin_counts is not None:
        np.add.at(output_bin_counts.numpy(), (of_row, new), 1)


def post_update_num_computed_tokens(
    idx_mapping: torch.Tensor, num_computed_tokens: torch.Tensor, query_start_loc: torch.Tensor
) -> None:
    """Update the number of computed tokens after a step that sampled nothing."""
    slots = idx_mapping.numpy()
    num_computed_tokens.numpy()[slots] += np.diff(query_start_loc.numpy()[: len(slots) + 1])


LOW_16 = np.uint32(0xFFFF)
SHIFT_13 = np.uint32(13)
SHIFT_16 = np.uint32(16)


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
    high = (state >> SHIFT_16).astype(np.float32)
    low = (state & LOW_16).astype(np.float32)
    return high * np.float32(2**-16) + (low + np.float32(0.5)) * np.float32(2**-32)


def gumbel(values: np.ndarray) -> np.ndarray:
    """Return Gumbel noise -log(-log(1 - value)) for values in (0, 1).

    As in the kernel, log(1 - x) is computed as a series for x below 1/4.
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
    """Divide each row by its temperature, unless it is 0 (greedy)."""
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
    """Mask tokens whose probability is below `min_p` times the highest probability."""
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
    """Mask all tokens of each row, except the most probable ones that top-k and then top-p keep.

    This replaces the function that launches the kernel, because the kernel does not run in Triton's interpreter.
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
    """Sample one token per row with Gumbel noise, and write it with its score to the first block. Others get -inf."""
    assert logits_cache is None, "speculative decoding is not supported without a GPU"
    assert not IS_DRAFTING, "speculative decoding is not supported without a GPU"
    assert not USE_FP64, "fp64 sampling noise is not supported without a GPU"
    slots = expanded_idx_mapping.numpy()
    scores = logits.float().numpy()
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
    """Compute the log-probabilities of the given tokens in each row."""
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
    """Count the tokens in each row that are at least as probable as the given token."""
    output.copy_((logits >= logits.gather(1, token_ids[:, None])).sum(dim=1))
