"""The interpreted GPU sampler gives the same rows as the CPU sampler throughout replies."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.model_state import SpeechModelState
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.slots import DeviceArrays, SlotTables
from stretto.engine.worker.step_program import StepProgram
from stretto.families.tiny.family import POINTER, TINY
from stretto.families.tiny.mechanism.draw import ScriptProgram
from stretto.family.base import DrawRules, Family
from tests.engine.worker.walks import CPU, LENGTH, NUM_SLOTS, WIDTH, assert_samplers_agree, captured, make_readout
from tests.small_vocabularies import BAGPIPER, DIALOGUE, OPUSLM, QWEN3_TTS, TRACKED_CSM, families_of_plugins
from tests.speech_families import EIGHT_STREAMS, INTERLEAVED, LATENTS, PENALIZED, THREE_ROWS
from tests.tiers import by_night

pytestmark = pytest.mark.slow
# Pairs and scripts, penalties, interleaved text, depth and a text track, several rows a frame, latents.
FEW_ENTRIES = replace(TINY, name="few_entries", drawing=replace(POINTER, max_entries=2))  # which end the text
FAMILIES = [TINY, PENALIZED, INTERLEAVED, THREE_ROWS, TRACKED_CSM, LATENTS]
CORE = [FEW_ENTRIES, DIALOGUE, QWEN3_TTS, BAGPIPER, OPUSLM, EIGHT_STREAMS]
BY_NIGHT = [*CORE, *families_of_plugins().values()]


@pytest.mark.parametrize("is_whole", [False, *by_night(True)], ids=["until others follow", "whole"])
@pytest.mark.parametrize("family", [*FAMILIES, *by_night(*BY_NIGHT)], ids=lambda family: family.name)
def test_step_program_matches_the_reference_sampler(family: Family, is_whole: bool) -> None:
    """By day, until other replies have followed in every slot."""
    assert_samplers_agree(family, is_whole)


@pytest.mark.parametrize("family", [*FAMILIES, *BY_NIGHT], ids=lambda family: family.name)
def test_profiling_run_reads_only_heads_that_the_family_has(family: Family) -> None:
    """vLLM samples rows of slots without a request, in order to find out how much memory a step needs."""
    rules, number = SegmentRules(family, LENGTH), np.zeros(NUM_SLOTS, np.int32)
    slots = RunSlots(SlotTables(NUM_SLOTS, rules, CPU), rules, DeviceArrays(CPU))
    batch: Any = SimpleNamespace(
        idx_mapping_np=np.arange(NUM_SLOTS),
        num_computed_tokens_np=number,
        num_scheduled_tokens=number + 1,
        prefill_len_np=number + 1,
    )
    assert slots.rows(batch).may_write.any() == bool(rules.num_text_ids)


class WithoutKernels(DrawRules):
    """Rules by which rows are sampled in torch only."""

    row_draw: ClassVar = type(POINTER).row_draw


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [(DrawRules(), StepProgram), (POINTER, ScriptProgram), (WithoutKernels(), None)],
)
def test_worker_samples_codes_by_the_rules_of_the_family(drawing: DrawRules, expected: type | None) -> None:
    rules = SegmentRules(replace(TINY, drawing=drawing), LENGTH)
    side = captured(rules, NUM_SLOTS)
    sampled: dict[str, Any] = {"_array_sampler": lambda sampler: None, "_kernel_sampler": lambda sampler: side.sampler}
    state: Any = SimpleNamespace(
        rules=rules, slots=side.slots, arrays=DeviceArrays(side.tokens.device), max_num_reqs=NUM_SLOTS,
        vllm_config=SimpleNamespace(additional_config={}), model_config=SimpleNamespace(get_hidden_size=lambda: WIDTH),
        _batch_embeds=torch.zeros(1, WIDTH), _readout=lambda: make_readout(rules, NUM_SLOTS), **sampled,
    )  # fmt: skip
    if expected is None:
        assert SpeechModelState._row_sampler(state, side.sampler) is None
    else:
        assert SpeechModelState._row_sampler(state, side.sampler) is side.sampler
        assert type(SpeechModelState._step_program(state, side.tokens)) is expected
