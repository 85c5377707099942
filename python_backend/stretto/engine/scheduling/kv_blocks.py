"""Counts of KV blocks: free, held by a request, and needed for a number of rows."""

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.request import Request


class KvBlocks:
    """Block counts of vLLM's KV cache manager.

    Args:
        manager: vLLM's cache manager.
        block_size: Rows per block.
        num_open: Number of newest rows that may be computed again and therefore are not shared yet.
    """

    def __init__(self, manager: KVCacheManager, block_size: int, num_open: int = 0):
        self._manager, self._block_size, self._num_open = manager, block_size, num_open
        if num_open:
            manager.coordinator.num_reprefillable_tokens = num_open

    def num_free(self) -> int:
        """Return the number of free blocks."""
        return self._manager.block_pool.get_num_free_blocks()

    def num_held(self, request_id: str) -> int:
        """Return the number of blocks held by a running request."""
        return len(self._manager.get_blocks(request_id).blocks[0])

    def needed(self, num_rows: int) -> int:
        """Return the number of blocks for `num_rows` rows."""
        return -(-num_rows // self._block_size)

    def cache_newest(self, request: Request, num_known: int, num_new: int) -> None:
        """Add the block that the newest `num_new` of `num_known` rows have filled to the prefix cache, if any."""
        if self._num_open or num_known % self._block_size < num_new:
            self._manager.cache_blocks(request, num_known)

    @property
    def usage(self) -> float:
        """Fraction of the blocks in use."""
        return self._manager.usage
