"""What of vLLM's options the scheduler works with; all others are refused by name as it starts."""

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig

from stretto.engine.request.rules import SegmentRules


def check_supported(config: VllmConfig, kv_cache: KVCacheConfig, rules: SegmentRules) -> None:
    """ValueError for an engine that pairs cannot be scheduled in."""
    if not config.use_v2_model_runner:
        raise ValueError("the speech plugin needs vLLM's Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=1")
    if config.scheduler_config.policy != "fcfs":
        raise ValueError(f"scheduling_policy: expected fcfs, got {config.scheduler_config.policy}")
    if len(kv_cache.kv_cache_groups) != 1:
        raise ValueError("the speech plugin supports models whose attention layers are all of one kind")
    refused = {
        "speculative_config": config.speculative_config is not None,
        "pipeline_parallel_size": config.parallel_config.pipeline_parallel_size > 1,
        "long_prefill_token_threshold": config.scheduler_config.long_prefill_token_threshold > 0,
    }
    if any(refused.values()):
        raise ValueError(f"the speech plugin works without {[name for name in refused if refused[name]]}")
    if config.max_concurrent_batches > rules.least_rows_to_audio:
        raise ValueError(
            f"{rules.family.name}: {config.max_concurrent_batches} steps in flight would outrun the "
            f"{rules.least_rows_to_audio} rows from its text to its audio; switch async scheduling off"
        )
