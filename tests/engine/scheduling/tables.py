"""Request tables without an engine, for tests of the scheduler's parts."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stretto.engine.environment import prepare_environment
from stretto.engine.reply_rules import SegmentRules
from stretto.streams.layout import Segment
from stretto.testing.checkpoints import make_prompt
from tests.reply_rows import push
from tests.speech_families import EIGHT_STREAMS as FAMILY
from tests.speech_families import FORCED_BURSTS

prepare_environment()

from vllm.v1.core.sched.request_queue import FCFSRequestQueue  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402

from stretto.engine.scheduling.request_state import RequestState  # noqa: E402
from stretto.engine.scheduling.request_table import RequestTable  # noqa: E402
from stretto.testing.conformance import sampling_params  # noqa: E402

RULES, BURSTS = SegmentRules(FAMILY, 160), SegmentRules(FORCED_BURSTS, 160)
BLOCK = 4
CODES = [0] * (FAMILY.layout.num_input_streams - 1)


@dataclass
class FakeBlocks:
    """Fake `KvBlocks` with a fixed number of free blocks of four rows."""

    free: int = 1000
    held: dict[str, int] = field(default_factory=dict)
    usage: float = 0.25
    sessions: set[str] = field(default_factory=set)

    def num_free(self) -> int:
        return self.free

    def num_held(self, request_id: str) -> int:
        return self.held.get(request_id, 0)

    def needed(self, num_rows: int) -> int:
        return -(-num_rows // BLOCK)

    spanned = needed

    def has_room(self, request: Request) -> bool:
        return True


def table(rules: SegmentRules = RULES) -> RequestTable:
    return RequestTable(rules, BLOCK)


def no_hashes(request: Request) -> list:
    """Return no block hashes; the presence of a hasher enables hashing."""
    return []


def arrive(
    into: RequestTable, request_id: str, task: str = "speak", num_rows: int = 8, host: str = "", **changes: object
) -> Request:
    """Return a new request, which is guided unless `changes` disable that."""
    prompt = make_prompt(FAMILY, 0, task, **{"guidance_scale": 2.0, **changes})
    prompt = replace(prompt, rows=np.resize(prompt.rows, (num_rows, prompt.rows.shape[1])))
    request = Request(
        request_id, prompt.rows[:, 0].tolist(), sampling_params(prompt, RULES, host), None, block_hasher=no_hashes
    )
    into.add(request)
    return request


def run(*requests: Request) -> list[Request]:
    """Return these requests in running state, with all rows read except the newest."""
    for request in requests:
        request.status = RequestStatus.RUNNING
        request.num_computed_tokens = request.num_tokens - 1
        request.is_prefill_chunk = False
    return list(requests)


def speak(state: RequestState, num_rows: int = 1) -> None:
    """Add rows of the audio segment, sampled and read."""
    for _ in range(num_rows):
        assert state.reply.segment is Segment.AUDIO
        token_id = FAMILY.layout.audio[0].start + 1
        state.history.put(state.request.num_tokens, [CODES])
        state.request.append_output_token_ids(token_id)
        state.request.num_computed_tokens += 1
        if not state.is_unconditional:
            push(state.reply, token_id)


def pair(into: RequestTable, request_id: str, **changes: Any) -> tuple[Request, Request]:
    """Return both requests of a CFG pair whose reply begins with audio."""
    request = arrive(into, request_id, **changes)
    return request, into.add_unconditional(into[request_id])


def queue(*requests: Request) -> FCFSRequestQueue:
    return FCFSRequestQueue(requests)
