"""The tokens of unconditional requests, taken past vLLM's loop over a step's output."""

from collections.abc import Mapping

from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.kv_blocks import KvBlocks
from stretto.engine.scheduling.request_table import RequestTable

RUNNING = RequestStatus.RUNNING  # asked for per row, and Python 3.11 is slow to find a member by its name


class UnconditionalOutput:
    """Gives unconditional requests their rows as vLLM does, but asks for none whether it is the last.

    vLLM's loop sees whether a row is the last and makes of it what a client gets. A half ends with its partner, and
    nothing of it leaves the engine; that loop is left with those that were preempted with this row on its way.
    num_in_advance: sampled tokens that a step counts before they are known; their blocks are hashed once they are.
    """

    def __init__(self, table: RequestTable, blocks: KvBlocks, num_in_advance: int):
        self._table, self._blocks, self._num_in_advance = table, blocks, num_in_advance

    def take(
        self, output: ModelRunnerOutput, codes: Mapping[str, list[list[int]]], scheduled: dict[str, int]
    ) -> dict[str, int]:
        """Of the rows that a step has `scheduled`, those of all other requests; `codes` are of those that sampled."""
        if not codes:
            return scheduled
        others = dict(scheduled)
        for request_id, token_ids in zip(output.req_ids, output.sampled_token_ids, strict=True):
            state = self._table.get(request_id)
            if state is None or not state.is_unconditional or not token_ids:
                continue
            request = state.request
            if request.status is RUNNING and request.num_stale_output_tokens == 0:
                request.num_in_flight_tokens -= others.pop(request_id)
                state.history.put(request.num_tokens, codes[request_id])
                self._append(request, token_ids)
        return others

    def _append(self, request: Request, token_ids: list[int]) -> None:
        request.append_output_token_ids(token_ids)
        if self._num_in_advance:
            request.num_output_placeholders -= len(token_ids)
            num_known = request.num_computed_tokens - request.num_output_placeholders
            self._blocks.cache_newest(request, num_known, len(token_ids))
