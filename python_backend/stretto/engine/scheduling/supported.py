"""Checks that vLLM's configuration and the family are supported by the scheduler."""

from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import KVCacheConfig

from stretto.engine.adapters import check_config
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.rules import STATE
from stretto.family.base import Family
from stretto.family.mechanism import RowSteps
from stretto.streams.layout import Segment


def check_supported(config: VllmConfig, kv_cache: KVCacheConfig, rules: SegmentRules) -> None:
    """Raise ValueError if the engine's configuration is unsupported or incompatible with the family."""
    check_config(config)
    if len(kv_cache.kv_cache_groups) != 1:
        raise ValueError("the speech plugin does not support models with several kinds of attention layers")
    if config.max_concurrent_batches > rules.min_rows_to_audio:
        raise ValueError(
            f"{rules.family.name}: expected at most {rules.min_rows_to_audio} steps in flight, the number of rows from "
            f"its text to its audio, got {config.max_concurrent_batches}; disable async scheduling"
        )
    reserved = sorted(set(STATE) & set(rules.own_state))
    if reserved:
        raise ValueError(f"{rules.family.name}: expected other state columns than the engine's, got {reserved}")
    if rules.family.mechanism.steps is not None:
        check_steps(config, rules, rules.family.mechanism.steps)
    if rules.family.track_streams:
        check_track(rules.family)
    depth = rules.family.depth
    if depth is not None and depth.num_first and rules.family.guided_streams:
        raise ValueError(f"{rules.family.name}: a depth transformer that predicts stream 0 does not support guidance")


def check_track(family: Family) -> None:
    """Raise ValueError unless the family's track advances with its rows.

    A track of text, or a family's own, requires a family whose replies are audio only. A track of recorded codes
    requires a family whose replies are text only or audio only. In both cases, a step must generate one row.
    """
    if family.code_track is not None:
        segments = {task.segments for task in family.tasks}
        if family.mechanism.steps is not None or not segments <= {(Segment.TEXT,), (Segment.AUDIO,)}:
            raise ValueError(f"{family.name}: given codes require text only or audio only, with one row per step")
        return
    text = family.text_track
    takes_rows = text is not None and text.text_rows is not None
    if takes_rows and (family.guided_streams or family.layout.num_output_streams > 1):
        raise ValueError(f"{family.name}: text in separate rows requires a single output stream without guidance")
    if family.mechanism.steps is not None or any(task.segments != (Segment.AUDIO,) for task in family.tasks):
        track_described = "a text track" if text else "its own track"
        raise ValueError(f"{family.name}: {track_described} requires replies of audio only, with one row per step")


def check_steps(config: VllmConfig, rules: SegmentRules, steps: RowSteps) -> None:
    """Raise ValueError if the configuration is incompatible with the family's multi-token steps."""
    name = rules.family.name
    budget = config.scheduler_config.max_num_batched_tokens
    if rules.family.guided_streams and rules.min_rows_to_audio < rules.max_model_len:
        raise ValueError(f"{name}: guidance is not supported with multi-token steps from text to audio")
    if budget < 2 * rules.max_rows_per_step:
        raise ValueError(
            f"max_num_batched_tokens: expected at least {2 * rules.max_rows_per_step}, the rows that a pair of {name} "
            f"generates per step, got {budget}"
        )
    if config.cache_config.block_size < steps.max_extra:
        raise ValueError(
            f"block_size: expected at least {steps.max_extra} rows, one for each further row of a step of {name}, "
            f"got {config.cache_config.block_size}"
        )
