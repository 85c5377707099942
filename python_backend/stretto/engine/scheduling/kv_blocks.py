"""KV blocks, counted: what is free, what a request holds, what rows need."""

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request


class KvBlocks:
    """vLLM's cache manager, asked for numbers.

    num_open: how many of the last rows read may be computed again, and are not to be shared before others follow.
    """

    def __init__(self, manager: KVCacheManager, block_size: int, num_open: int = 0):
        self._manager, self._block_size, self._num_open = manager, block_size, num_open
        if num_open:
            manager.coordinator.num_reprefillable_tokens = num_open

    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return self._manager.block_pool.get_num_free_blocks()

    def num_held(self, request_id: str) -> int:
        """Blocks of a running request."""
        return len(self._manager.get_blocks(request_id).blocks[0])

    def needed(self, num_rows: int) -> int:
        """Blocks for so many rows."""
        return -(-num_rows // self._block_size)

    def cache_newest(self, request: Request, num_known: int, num_new: int) -> None:
        """Let others share the block that the newest `num_new` of the rows whose ids are known have filled, if any."""
        if self._num_open or num_known % self._block_size < num_new:
            self._manager.cache_blocks(request, num_known)

    @property
    def usage(self) -> float:
        """The share of the blocks in use."""
        return self._manager.usage
