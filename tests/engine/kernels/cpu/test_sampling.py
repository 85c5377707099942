"""CPU sampling equals the interpreted kernels, so a seed gives the same tokens as on a GPU."""

import math

import pytest
import torch
from vllm.triton_utils import dispatcher

from stretto import cpu_backend as cpu_kernels
from stretto.cpu_backend import model_runner

pytestmark = pytest.mark.slow

SLOTS, ROWS = 6, 4
SLOT_OF_ROW = torch.tensor([5, 0, 3, 2])


def logits_of(seed: int, vocab: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("vocab", [7, 1500])
def test_cpu_temperature_matches_the_gpu_kernel(same_as_kernel, vocab):
    temperature = torch.tensor([0.0, 1.0, 0.7, 1.0, 2.0, 0.1])
    same_as_kernel(
        "sample.gumbel._temperature_kernel", (ROWS, 1),
        logits_of(0, vocab), vocab, SLOT_OF_ROW, temperature, vocab, BLOCK_SIZE=2048,
    )  # fmt: skip


@pytest.mark.parametrize("temperatures", [(0.0,) * 6, (0.8,) * 6, (0.0, 1.0, 0.7, 0.0, 2.0, 0.1)])
@pytest.mark.parametrize("apply_temperature", [False, True])
@pytest.mark.parametrize("vocab", [5, 1024, 2500])
def test_cpu_seeded_sampling_matches_the_gpu_kernel(vocab, temperatures, apply_temperature):
    random = torch.Generator().manual_seed(vocab)
    seeds = torch.randint(-(2**63), 2**63 - 1, (SLOTS,), generator=random)
    logits, blocks = logits_of(1, vocab, scale=0.5), -(-vocab // 1024)
    logits[:, 3:4] = float("-inf")
    winners = []
    for step in range(6):
        outputs = torch.zeros(ROWS, blocks, dtype=torch.int64), torch.zeros(ROWS, blocks)
        arguments = (
            None, 0, 0, None, None, 0, logits, vocab, SLOT_OF_ROW, seeds, torch.arange(ROWS) * 9 + step,
            torch.tensor(temperatures), vocab,
        )  # fmt: skip
        constants = {
            "BLOCK_SIZE": 1024, "IS_DRAFTING": False, "APPLY_TEMPERATURE": apply_temperature,
            "USE_FP64": False, "PER_TOKEN_COL": False,
        }  # fmt: skip
        winners.append(draw(outputs, arguments, constants))
    assert len({tuple(row) for row in winners}) > 1 or not any(temperatures), "noise moves with the position"


def draw(outputs, arguments, constants):
    """Return the tokens that kernel and twin sample, each reduced over its own blocks as in vLLM."""
    cpu_kernels.install()
    interpreted, twin = dispatcher._registry[f"{cpu_kernels.RUNNER}.sample.gumbel._gumbel_sample_kernel"]
    results = []
    for launch in (interpreted[ROWS, outputs[0].shape[1]], twin):
        tokens, scores = (output.clone() for output in outputs)
        launch(tokens, tokens.stride(0), scores, scores.stride(0), *arguments, **constants)
        best = scores.argmax(dim=-1, keepdim=True)
        results.append((tokens.gather(1, best).flatten().tolist(), scores.amax(dim=-1)))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1]), "the noise is the same to the last bit"
    return results[1][0]


def keep(scores: list[float], k: int, p: float) -> list[float]:
    """Keep the most probable tokens one by one until there are `k` or their probability reaches `p`."""
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:k]
    total = sum(math.exp(scores[token]) for token in order)
    kept, held = [float("-inf")] * len(scores), 0.0
    for token in order:
        kept[token] = scores[token]
        held += math.exp(scores[token]) / total
        if held >= p:
            break
    return kept


@pytest.mark.parametrize(("k", "p"), [(None, 0.7), ((3, 90, 1, 20), None), ((3, 90, 1, 20), 0.7)])
def test_top_k_and_top_p_keep_the_most_probable(k, p):
    logits = logits_of(5, 90, scale=1.0)
    expected = [keep(row, k[i] if k else 90, p or 1.0) for i, row in enumerate(logits.tolist())]
    model_runner.apply_top_k_top_p(
        logits, logits, logits, logits, torch.tensor(k, dtype=torch.int32) if k else None,
        torch.full((ROWS,), p) if p else None, float("-inf"), 1,
    )  # fmt: skip
    assert torch.equal(logits, torch.tensor(expected))


def test_min_p_matches_the_kernel(same_as_kernel):
    min_p = torch.tensor([0.0, 0.1, 0.5, 0.01, 0.0, 0.9])
    same_as_kernel("sample.min_p._min_p_kernel", (ROWS,), logits_of(2, 90), 90, SLOT_OF_ROW, min_p, 90, BLOCK_SIZE=32)


@pytest.mark.parametrize("check_all_masked", [False, True])
@pytest.mark.parametrize("position", [2, 30])
def test_cpu_logit_bias_matches_the_gpu_kernel(same_as_kernel, check_all_masked, position):
    ids = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))[:8] for i in range(SLOTS)]).int()
    bias = torch.linspace(-4, 4, SLOTS * 8).view(SLOTS, 8)

    def count(*numbers: int) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32)

    same_as_kernel(
        "sample.logit_bias._bias_kernel", (ROWS,),
        logits_of(3, 40), 40, 40, SLOT_OF_ROW, count(0, 0, 2, 3, 0, 0), ids, 8, count(3, 0, 0, 8, 0, 0),
        ids.flip(1).contiguous(), 8, bias, 8, torch.full((ROWS,), position), count(0, 9, 9, 9, 9, 9),
        count(0, 0, 2, 3, 0, 4), count(0, 0, 1, 1, 0, 0), ids, 8,
        BLOCK_SIZE=8, LOGITS_BLOCK_SIZE=16, CHECK_ALL_MASKED_ROWS=check_all_masked,
    )  # fmt: skip


def test_log_probabilities_and_ranks_match_the_kernels(same_as_kernel):
    logits, tokens = logits_of(4, 300), torch.randint(300, (ROWS, 5), generator=torch.Generator().manual_seed(1))
    same_as_kernel(
        "sample.logprob._topk_log_softmax_kernel", (ROWS,),
        torch.zeros(ROWS, 5), logits, 300, tokens, 5, 5, 300, BLOCK_SIZE=128, TOPK_BLOCK_SIZE=8,
    )  # fmt: skip
    same_as_kernel(
        "sample.logprob._ranks_kernel", (ROWS,),
        torch.zeros(ROWS, dtype=torch.int64), logits, 300, tokens[:, 0].contiguous(), 300, BLOCK_SIZE=128,
    )  # fmt: skip
