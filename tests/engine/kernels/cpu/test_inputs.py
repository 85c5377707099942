"""Batches with decoding, prefilling, partly prefilling and absent rows, against the interpreted kernels."""

from dataclasses import dataclass

import pytest
import torch

MAX_REQS, MAX_LEN, MAX_TOKENS, VOCAB = 8, 64, 128, 50


@dataclass(frozen=True)
class Batch:
    """Random request slots, and a batch with `query_lens` tokens per row; row i prefills if `prefilling[i]`."""

    seed: int
    query_lens: tuple[int, ...]
    prefilling: tuple[bool, ...]

    def tensors(self) -> dict[str, torch.Tensor]:
        random = torch.Generator().manual_seed(self.seed)
        num_reqs = len(self.query_lens)
        slots = torch.randperm(MAX_REQS, generator=random)[:num_reqs]
        starts = torch.zeros(MAX_REQS + 1, dtype=torch.int32)
        starts[1 : num_reqs + 1] = torch.tensor(self.query_lens).cumsum(0)
        starts[num_reqs + 1 :] = sum(self.query_lens)
        prefill_len = torch.randint(20, 30, (MAX_REQS,), generator=random, dtype=torch.int32)
        computed = torch.zeros(MAX_REQS, dtype=torch.int32)
        for slot, prefilling in zip(slots.tolist(), self.prefilling, strict=True):
            computed[slot] = 5 + slot if prefilling else prefill_len[slot] + slot
        lengths = computed[slots] + torch.tensor(self.query_lens, dtype=torch.int32)
        seq_lens = torch.zeros(MAX_REQS, dtype=torch.int32)
        seq_lens[:num_reqs] = lengths
        return {
            "slots": slots,
            "starts": starts,
            "prefill_len": prefill_len,
            "computed": computed,
            "seq_lens": seq_lens,
            "tokens": torch.randint(VOCAB, (MAX_REQS, MAX_LEN), generator=random, dtype=torch.int32),
            "last": torch.randint(VOCAB, (MAX_REQS, 1), generator=random),
            "sampled": torch.randint(VOCAB, (num_reqs, 1), generator=random),
        }


BATCHES = [
    Batch(0, (1,), (False,)),
    Batch(1, (1, 1, 1, 1, 1, 1, 1, 1), (False,) * 8),
    Batch(2, (20, 3), (True, True)),
    Batch(3, (1, 24, 1, 7), (False, True, False, True)),
    Batch(4, (1, 1, 1), (True, False, True)),
]
EMPTY_ROW = Batch(5, (0, 1, 4), (False, False, True))  # a row of padding; one that samples has a token
batches = pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: f"{batch.query_lens}")
batches_and_padding = pytest.mark.parametrize("batch", [*BATCHES, EMPTY_ROW], ids=lambda batch: f"{batch.query_lens}")


@batches_and_padding
@pytest.mark.parametrize("lookahead", [1, 3])
def test_prefill_inputs_match_the_kernel(same_as_kernel, batch, lookahead):
    of = batch.tensors()
    ids, following = torch.full((MAX_TOKENS,), -7, dtype=torch.int32), torch.full((lookahead, MAX_REQS), -7).int()
    same_as_kernel(
        "input_batch._prepare_prefill_inputs_kernel", (len(batch.query_lens),),
        ids, following, following.stride(0), lookahead, of["slots"], of["starts"], of["tokens"], MAX_LEN,
        of["prefill_len"], of["computed"], BLOCK_SIZE=16, LOOKAHEAD_BLOCK=4,
    )  # fmt: skip


@batches_and_padding
def test_positions_and_lengths_continue_from_the_computed_tokens(same_as_kernel, batch):
    of = batch.tensors()
    pos, lengths = torch.full((MAX_TOKENS,), -7), torch.full((MAX_REQS,), -7, dtype=torch.int32)
    _, got, *_ = same_as_kernel(
        "input_batch._prepare_pos_seq_lens_kernel", (len(batch.query_lens) + 1,),
        pos, lengths, of["slots"], of["starts"], of["computed"], MAX_REQS, BLOCK_SIZE=16,
    )  # fmt: skip
    assert got.tolist() == of["seq_lens"].tolist()


@batches
def test_cpu_combine_sampled_tokens_matches_the_gpu_kernel(same_as_kernel, batch):
    of, num_reqs = batch.tensors(), len(batch.query_lens)
    same_as_kernel(
        "input_batch._combine_sampled_and_draft_tokens_kernel", (num_reqs,),
        torch.full((MAX_TOKENS,), -7, dtype=torch.int32), of["slots"], of["last"], of["starts"], of["seq_lens"],
        of["prefill_len"], torch.zeros(MAX_REQS, 0, dtype=torch.int64), 0, torch.arange(num_reqs + 1).int(),
        torch.zeros(num_reqs, dtype=torch.int64), NUM_NEW_SAMPLED_TOKENS=1, BLOCK_SIZE=1,
    )  # fmt: skip


@batches
def test_prefilling_rows_sample_nothing(same_as_kernel, batch):
    of, num_reqs = batch.tensors(), len(batch.query_lens)
    same_as_kernel(
        "input_batch._get_num_sampled_and_rejected_kernel", (num_reqs,),
        torch.ones(num_reqs, dtype=torch.int32), torch.full((num_reqs,), -7, dtype=torch.int32), of["seq_lens"],
        torch.arange(num_reqs + 1).int(), of["slots"], of["prefill_len"],
    )  # fmt: skip


@batches
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("optional", [False, True])
def test_sampled_token_updates_match_the_kernel(same_as_kernel, batch, masked, optional):
    of, num_reqs = batch.tensors(), len(batch.query_lens)
    slots = of["slots"].clone()
    slots[0] = -1 if masked else slots[0]
    sampled = (of["seq_lens"][:num_reqs] >= of["prefill_len"][of["slots"]]).int()
    counts = torch.zeros(MAX_REQS, VOCAB, dtype=torch.int32) if optional else None
    same_as_kernel(
        "input_batch._post_update_kernel", (num_reqs,),
        slots, of["computed"], of["last"], counts, VOCAB, of["sampled"], 1, sampled,
        torch.zeros(num_reqs, dtype=torch.int32), of["starts"] if optional else None, of["tokens"], MAX_LEN,
        of["prefill_len"].clone(),
    )  # fmt: skip


@batches
def test_computed_token_counts_match_the_kernel_without_sampling(same_as_kernel, batch):
    of = batch.tensors()
    same_as_kernel(
        "input_batch._post_update_num_computed_tokens_kernel", (len(batch.query_lens),),
        of["slots"], of["computed"], of["starts"],
    )  # fmt: skip


def test_drafted_tokens_are_refused():
    from stretto.cpu_backend import model_runner

    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(AssertionError, match="speculative"):
        model_runner.combine_sampled_and_draft_tokens(one, one, one, one, one, one, torch.zeros(1, 2), 2, one, one)
