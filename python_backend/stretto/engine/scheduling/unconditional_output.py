"""Rows sampled by unconditional requests."""

from collections.abc import Mapping

from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from stretto.engine.protocol import UNCONDITIONAL_SUFFIX
from stretto.engine.scheduling.planner import KvBlocks
from stretto.engine.scheduling.request_table import RequestTable

RUNNING = RequestStatus.RUNNING  # cached because enum member access is slow in Python 3.11


class UnconditionalOutput:
    """Processor of the rows sampled by unconditional requests, in place of vLLM's loop.

    vLLM's loop checks stop conditions and builds client outputs, whereas an unconditional request ends with its partner
    and has no client output. vLLM's loop handles such a request only if it was preempted while the row was in flight.

    Args:
        num_in_advance: Number of sampled tokens per step that are counted before they are known (async scheduling).
    """

    def __init__(self, table: RequestTable, blocks: KvBlocks, num_in_advance: int):
        self._table = table
        self._blocks = blocks
        self._num_in_advance = num_in_advance

    def extract(
        self, output: ModelRunnerOutput, codes: Mapping[str, list[list[int]]], scheduled: dict[str, int]
    ) -> dict[str, int]:
        """Record the sampled rows of unconditional requests, and return the other entries of `scheduled`."""
        if not codes:
            return scheduled
        others = dict(scheduled)
        for request_id, token_ids in zip(output.req_ids, output.sampled_token_ids, strict=True):
            state = self._table.get(request_id)
            if state is None and request_id.endswith(UNCONDITIONAL_SUFFIX):
                del others[request_id]  # removed since then; its id may be reused while this output is processed
                continue
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
