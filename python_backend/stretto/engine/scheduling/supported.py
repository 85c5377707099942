"""What of vLLM's options and models the scheduler does not work with: refused by name as it starts."""

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig

from stretto.engine.request.rules import SegmentRules
from stretto.engine.request.supported import check_config


def check_supported(config: VllmConfig, kv_cache: KVCacheConfig, rules: SegmentRules) -> None:
    """ValueError for an engine that pairs cannot be scheduled in."""
    check_config(config)
    if len(kv_cache.kv_cache_groups) != 1:
        raise ValueError("the speech plugin supports models whose attention layers are all of one kind")
    if config.max_concurrent_batches > rules.least_rows_to_audio:
        raise ValueError(
            f"{rules.family.name}: {config.max_concurrent_batches} steps in flight would outrun the "
            f"{rules.least_rows_to_audio} rows from its text to its audio; switch async scheduling off"
        )
