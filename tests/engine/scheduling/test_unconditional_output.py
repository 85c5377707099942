"""Unconditional requests receive their rows through a separate path."""

from types import SimpleNamespace

from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.planner import KvBlocks
from stretto.engine.scheduling.unconditional_output import UnconditionalOutput
from tests.engine.scheduling.tables import CODES, pair, run, table


class Cached:
    """Fake cache manager: number of hashed blocks by request."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def cache_blocks(self, request: Request, num_tokens: int) -> None:
        self.seen.append((request.request_id, num_tokens))


def step(*requests: Request) -> tuple[SimpleNamespace, dict[str, list[list[int]]], dict[str, int]]:
    """Return the output of a step in which each of `requests` samples token 7."""
    ids = [request.request_id for request in requests]
    for request in requests:
        request.num_in_flight_tokens += 1
    output = SimpleNamespace(req_ids=ids, sampled_token_ids=[[7]] * len(ids))
    return output, {request_id: [CODES] for request_id in ids}, dict.fromkeys(ids, 1)


def test_unconditional_output_is_extracted_from_the_step() -> None:
    known, cached = table(), Cached()
    one, half = run(*pair(known, "one"))
    output, codes, scheduled = step(one, half)
    assert UnconditionalOutput(known, KvBlocks(cached, 3), 0).extract(output, codes, scheduled) == {"one": 1}
    assert scheduled == {"one": 1, half.request_id: 1}, "what the step computed stays as it is"
    assert list(half.output_token_ids) == [7]
    assert not one.output_token_ids
    assert known[half.request_id].history.num_rows == 9
    assert (half.num_in_flight_tokens, one.num_in_flight_tokens) == (0, 1)
    assert not cached.seen


def test_output_in_flight_resolves_one_placeholder() -> None:
    known, cached = table(), Cached()
    _, half = run(*pair(known, "one"))
    half.num_output_placeholders, half.num_computed_tokens = 2, 10
    UnconditionalOutput(known, KvBlocks(cached, 3), 1).extract(*step(half))
    assert half.num_output_placeholders == 1
    assert cached.seen == [(half.request_id, 9)]


def test_unconditional_kv_blocks_are_cached_when_full() -> None:
    known, cached = table(), Cached()
    _, half = run(*pair(known, "one"))
    output = UnconditionalOutput(known, KvBlocks(cached, 3), 1)
    for num_computed in range(9, 17):
        half.num_output_placeholders, half.num_computed_tokens = 2, num_computed
        output.extract(*step(half))
    assert [num_tokens for _, num_tokens in cached.seen] == [9, 12, 15]


def test_unconditional_multi_token_rows_keep_rereadable_blocks_open() -> None:
    known, cached = table(), Cached()
    cached.coordinator = SimpleNamespace(num_reprefillable_tokens=0)
    _, half = run(*pair(known, "one"))
    half.num_output_placeholders, half.num_computed_tokens = 4, 12
    output, codes, scheduled = step(half)
    output.sampled_token_ids, codes[half.request_id] = [[7, 8, 9]], [CODES, [1] * len(CODES), CODES]
    UnconditionalOutput(known, KvBlocks(cached, 3, num_open=5), 1).extract(output, codes, scheduled)
    assert list(half.output_token_ids) == [7, 8, 9]
    assert half.num_output_placeholders == 1
    assert known[half.request_id].history.rows(8, 11)[:, 0].tolist() == [CODES[0], 1, CODES[0]]
    assert cached.coordinator.num_reprefillable_tokens == 5
    assert cached.seen == [(half.request_id, 11)], "vLLM takes the open ones off"


def test_vllm_handles_unconditional_requests_preempted_in_flight() -> None:
    known = table()
    _, half = run(*pair(known, "one"))
    half.status = RequestStatus.PREEMPTED
    assert UnconditionalOutput(known, KvBlocks(Cached(), 3), 0).extract(*step(half)) == {half.request_id: 1}
    half.status, half.num_stale_output_tokens = RequestStatus.RUNNING, 1
    assert UnconditionalOutput(known, KvBlocks(Cached(), 3), 0).extract(*step(half)) == {half.request_id: 1}
    assert not half.output_token_ids


def test_vllm_handles_unconditional_requests_during_prefill() -> None:
    known = table()
    one, half = run(*pair(known, "one"))
    output, codes, scheduled = step(one, half)
    output.sampled_token_ids = [[7], []]
    assert UnconditionalOutput(known, KvBlocks(Cached(), 3), 0).extract(output, codes, scheduled) == scheduled
    assert UnconditionalOutput(known, KvBlocks(Cached(), 3), 0).extract(output, {}, scheduled) == scheduled
