"""vLLM options and models that the scheduler refuses at start-up, by name."""

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig

from stretto.engine.request.rules import SegmentRules
from stretto.engine.request.supported import check_config
from stretto.families.base import Family
from stretto.families.bursts import Bursts
from stretto.streams.segment import Segment


def check_supported(config: VllmConfig, kv_cache: KVCacheConfig, rules: SegmentRules) -> None:
    """Raise ValueError for an engine configuration in which CFG pairs cannot be scheduled."""
    check_config(config)
    if len(kv_cache.kv_cache_groups) != 1:
        raise ValueError("the speech plugin supports models whose attention layers are all of one kind")
    if config.max_concurrent_batches > rules.least_rows_to_audio:
        raise ValueError(
            f"{rules.family.name}: {config.max_concurrent_batches} steps in flight would outrun the "
            f"{rules.least_rows_to_audio} rows from its text to its audio; switch async scheduling off"
        )
    if rules.family.bursts is not None:
        check_bursts(config, rules, rules.family.bursts)
    if rules.family.track_stream is not None:
        check_track(rules.family)


def check_track(family: Family) -> None:
    """Raise ValueError if streamed text or positions do not advance with the frames, or if a family has both."""
    if family.text_track is not None and family.positions is not None:
        raise ValueError(f"{family.name}: there is one stream whose ids are known before its rows, not two")
    if family.bursts is not None or any(task.segments != (Segment.AUDIO,) for task in family.tasks):
        kind = "a text track goes" if family.text_track else "positions go"
        raise ValueError(f"{family.name}: {kind} with replies that are audio alone, a row a step")


def check_bursts(config: VllmConfig, rules: SegmentRules, bursts: Bursts) -> None:
    """Raise ValueError if multi-token steps cannot be scheduled or their KV blocks cannot be shared."""
    name, budget = rules.family.name, config.scheduler_config.max_num_batched_tokens
    if rules.family.guided_streams and rules.least_rows_to_audio < rules.max_model_len:
        raise ValueError(f"{name}: a reply that steps of several rows take from text to audio cannot be guided")
    if budget < 2 * rules.max_rows_per_step:
        raise ValueError(
            f"max_num_batched_tokens: expected at least {2 * rules.max_rows_per_step}, the rows that a pair of {name} "
            f"says in a step, got {budget}"
        )
    if config.cache_config.block_size < bursts.num_modules:
        raise ValueError(
            f"block_size: expected at least {bursts.num_modules}, the modules of {name}, "
            f"got {config.cache_config.block_size}"
        )
