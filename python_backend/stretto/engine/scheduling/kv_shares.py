"""KV shares: separate limits on the cache for requests that understand audio and requests that generate it.

Off by default. A queue served in order lets many long prompts of one kind delay all other requests. With shares, a
request is skipped while its class is full, and only then; the order within a class does not change.
"""

from collections.abc import Iterable

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from stretto.engine.scheduling.kv_blocks import KvBlocks
from stretto.engine.scheduling.request_table import RequestTable

KEY = "kv_share"
UNDERSTANDING, GENERATION = "understanding", "generation"


class KvShares:
    """Admission of waiting requests by the KV share of their class.

    A request is admitted only while the blocks that its class holds plus those that it needs fit in the class's share.
    A class without a share is unlimited.
    """

    def __init__(self, table: RequestTable, blocks: KvBlocks, config: VllmConfig, kv_cache: KVCacheConfig):
        self._table, self._blocks = table, blocks
        options = config.additional_config
        shares = (options.get(KEY) if isinstance(options, dict) else None) or {}
        num_blocks = kv_cache.num_blocks - 1  # vLLM reserves one block
        self._limits = {name: int(share * num_blocks) for name, share in shares.items()}

    def full(self, waiting: Iterable[Request], running: list[Request]) -> list[Request]:
        """Return the queued requests whose class has no room for its first waiting request."""
        if not self._limits:
            return []
        has_room: dict[str, bool] = {}
        full = []
        for request in waiting:
            if self._is_awaited(request, running):
                continue
            name = self._class_of(request)
            if name not in has_room:
                has_room[name] = self.has_room(request, running)
            if not has_room[name]:
                full.append(request)
        return full

    def has_room(self, request: Request, running: list[Request]) -> bool:
        """Return True if the class of `request` has room for it; the first request of a class always fits."""
        if not self._limits or self._is_awaited(request, running):
            return True
        name = self._class_of(request)
        limit = self._limits.get(name)
        held = sum(self._needed(other) for other in running if self._class_of(other) == name)
        return limit is None or held == 0 or held + self._needed(request) <= limit

    def _is_awaited(self, request: Request, running: list[Request]) -> bool:
        """Return True if the CFG partner of `request` runs already; its blocks are counted for both."""
        partner = self._table.partner(request.request_id)
        return partner is not None and any(other.request_id == partner for other in running)

    def _class_of(self, request: Request) -> str:
        speaks = self._table[request.request_id].tracker.task.speaks
        return GENERATION if speaks else UNDERSTANDING

    def _needed(self, request: Request) -> int:
        """Return the blocks needed for the rows of `request`; a conditional request counts for its whole pair."""
        state = self._table[request.request_id]
        if state.is_unconditional:
            return 0
        return self._blocks.needed(request.num_tokens + 1) * (1 if state.pair is None else 2)
