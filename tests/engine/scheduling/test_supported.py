"""Engines that cannot schedule CFG pairs refuse to start and give the reason."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.scheduling.supported import check_supported
from stretto.family.base import DrawRules, Family
from stretto.family.input_tracks import CodeTrack
from tests.speech_families import EIGHT_STREAMS, FORCED_BURSTS, FORCED_CHAT, NUM_STREAMS, SEPARATE_TEXT, TRACKED

GUIDED_CHAT = replace(FORCED_CHAT, name="guided_chat", guided_streams=(0,))
TRACKED_CHAT = replace(TRACKED, name="tracked_chat", tasks=EIGHT_STREAMS.tasks)
CODED = replace(TRACKED, name="coded", track=CodeTrack(range(NUM_STREAMS, NUM_STREAMS + 1)))
CODED_CHAT = replace(CODED, name="coded_chat", tasks=EIGHT_STREAMS.tasks)
GUIDED_TEXT = replace(SEPARATE_TEXT, name="guided_text", guided_streams=(0,))


class Clashing(DrawRules):
    """Rules with a state column of the engine."""

    state: ClassVar = {"num_codes": 0}


CLASHING = replace(EIGHT_STREAMS, name="clashing", drawing=Clashing())
PARALLEL = SimpleNamespace(
    pipeline_parallel_size=1,
    prefill_context_parallel_size=1,
    decode_context_parallel_size=1,
    enable_batch_sharded_sampling=False,
    enable_dbo=False,
    nnodes=1,
    data_parallel_size=1,
)


def check(
    num_groups: int = 1,
    steps: int = 1,
    policy: str = "fcfs",
    threshold: int = 0,
    family: Family = EIGHT_STREAMS,
    budget: int = 10,
    block_size: int = 4,
    **changes: Any,
) -> None:
    config = SimpleNamespace(
        use_v2_model_runner=True,
        speculative_config=None,
        lora_config=None,
        parallel_config=PARALLEL,
        scheduler_config=SimpleNamespace(
            policy=policy, long_prefill_token_threshold=threshold, max_num_batched_tokens=budget
        ),
        cache_config=SimpleNamespace(block_size=block_size),
        max_concurrent_batches=steps,
    )
    vars(config).update(changes)
    check_supported(config, SimpleNamespace(kv_cache_groups=[None] * num_groups), SegmentRules(family, 1024))


def test_supported_settings_are_accepted() -> None:
    check()
    check(steps=2)
    check(family=FORCED_BURSTS, steps=2)
    check(family=FORCED_CHAT, steps=2)
    check(family=TRACKED, steps=2)
    check(family=CODED, steps=2)
    check(family=SEPARATE_TEXT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_v2_model_runner": False}, "VLLM_USE_V2_MODEL_RUNNER=1"),
        ({"policy": "priority"}, "scheduling_policy: expected fcfs, got priority"),
        ({"num_groups": 2}, "several kinds of attention layers"),
        ({"speculative_config": object()}, r"does not support \['speculative_config'\]"),
        ({"threshold": 8}, r"does not support \['long_prefill_token_threshold'\]"),
        ({"steps": 3}, "eight_streams: expected at most 2 steps in flight"),
        ({"family": GUIDED_CHAT}, "guided_chat: guidance is not supported with multi-token steps from text to audio"),
        ({"family": FORCED_BURSTS, "budget": 9}, "max_num_batched_tokens: expected at least 10, .*, got 9"),
        ({"family": CLASHING}, r"clashing: expected other state columns .*, got \['num_codes'\]"),
        ({"family": TRACKED_CHAT}, "tracked_chat: a text track requires replies of audio only"),
        ({"family": CODED_CHAT}, "coded_chat: given codes require text only or audio only"),
        ({"family": GUIDED_TEXT}, "guided_text: text in separate rows requires a single output stream"),
        (
            {"family": FORCED_BURSTS, "block_size": 3},
            "block_size: expected at least 4 rows, one for each .*, got 3",
        ),
    ],
)
def test_unsupported_vllm_settings_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check(**changes)
