from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.core.sched.output import NewRequestData

from stretto.engine.columns import LIMITS
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.step_records import NewText, SpeechRequestData
from stretto.engine.tracks import ENDLESS, rows_of
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.slots import Arrays, DeviceArrays, HostArrays, SlotTables
from stretto.families.tiny.family import END_OF_TEXT, POINTER, TINY
from stretto.family.base import DrawRules, Family
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.reply_rows import states_of
from tests.small_vocabularies import families_of_plugins
from tests.speech_families import INTERLEAVED, TRACKED


@pytest.mark.parametrize("arrays", [HostArrays(), DeviceArrays(torch.device("cpu"))], ids=["numpy", "torch"])
def test_slots_staged_together_hold_the_state_of_each_reply(arrays: Arrays) -> None:
    rules = SegmentRules(TINY, 128)
    tables = SlotTables(4, rules, torch.device("cpu"))
    staged = {}
    for slot, index in ((2, 0), (0, 2), (3, 6)):
        prompt = make_prompt(TINY, index, "tts")
        reply, entries = ReplyState.begin(rules, TINY.task("tts"), len(prompt.rows)), list(POINTER.spoken[:index])
        states_of(reply, entries + [END_OF_TEXT] * (index > 2))
        codes = np.random.default_rng(index).integers(0, 99, (reply.position, 8)).astype(np.int32)
        tables.stage(slot, prompt, reply, codes, entries=[0, *entries])
        staged[slot] = (reply, codes, entries)
    before = tables.codes[1].clone()
    tables.apply_staged(arrays)
    for slot, (reply, codes, entries) in staged.items():
        assert tables.state[slot].tolist() == reply.values(rules.state_names)
        assert tables.texts[slot, 1 : 1 + len(entries)].tolist() == entries
        assert np.array_equal(tables.codes[slot, : len(codes)], codes)
        assert not tables.codes[slot, len(codes) :].any()
    assert torch.equal(tables.codes[1], before)
    tables.state.zero_()
    tables.apply_staged(arrays)
    assert not tables.state.any(), "what was staged was written once"


@pytest.mark.parametrize("family", [TINY, INTERLEAVED, *families_of_plugins().values()], ids=lambda family: family.name)
def test_preempted_reply_continues_from_the_state_of_its_last_row(family: Family) -> None:
    """A new request begins with the state before a reply; entries of a pointer are the spoken tokens of the text."""
    rules, prompt = SegmentRules(family, 128), make_prompt(family, 0)
    slots = RunSlots(SlotTables(2, rules, torch.device("cpu")), rules, HostArrays())
    ids, codes = prompt.rows[:, 0].tolist(), prompt.rows[:, 1:]
    spoken = list(POINTER.spoken[:3]) if family is TINY else []
    rows = [*ids, *spoken, *[END_OF_TEXT] * 3]
    track = rules.track(len(ids), prompt.track)
    begun = ReplyState.begin(rules, family.task(prompt.task), len(ids), track)
    expected = ReplyState.begin(rules, family.task(prompt.task), len(ids), track)
    expected.move(len(rows), range(3, 3 + len(rules.sent_state)))
    for slot, written, state, reply in ((0, ids, (), begun), (1, rows, expected.values(rules.sent_state), expected)):
        data = NewRequestData(f"r{slot}", ids, [], None, None, ([1],), 0, None, prefill_token_ids=written)
        held = np.resize(codes, (len(written), codes.shape[1]))
        slots.fill(slot, SpeechRequestData.extending(data, prompt, held, track, state))
        slots.tables.apply_staged(HostArrays())
        assert slots.tables.state[slot].tolist() == reply.values(rules.state_names)
    assert slots.tables.texts[1, 1 : 1 + len(spoken)].tolist() == spoken


@pytest.mark.parametrize(("counted", "expected"), [("all", {3, 7, 20, 21}), ("drawn", {20, 21})])
def test_slot_restores_the_tokens_its_reply_has_generated(counted: str, expected: set[int]) -> None:
    """After a preemption, the prompt is 3 and 7, and the reply has reached 20 and 21."""
    rules = SegmentRules(replace(INTERLEAVED, drawing=DrawRules(penalized=counted)), 128)
    slots = RunSlots(SlotTables(2, rules, torch.device("cpu")), rules, HostArrays())
    slots.tables.seen[1] = True
    sampling = INTERLEAVED.tasks[0].sampling
    prompt = Prompt("reply", np.array([[3], [7]], np.int32), replace(sampling, seed=0))
    data = NewRequestData("r", [3, 7], [], None, None, ([1],), 0, None, prefill_token_ids=[3, 7, 20, 21])
    slots.fill(1, SpeechRequestData.extending(data, prompt, np.zeros((4, 0), np.int32)))
    slots.tables.apply_staged(HostArrays())
    assert set(slots.tables.seen[1].nonzero().flatten().tolist()) == expected
    assert not slots.tables.seen[0].any()


def test_slot_text_is_extended_at_its_track_position() -> None:
    """This holds whatever the previous reply has left there. The end of the text lets the audio end."""
    rules = SegmentRules(TRACKED, 64)
    tables = SlotTables(2, rules, torch.device("cpu"))
    tables.codes[:] = 99
    arrays = HostArrays()
    slots = RunSlots(tables, rules, arrays)
    prompt = make_prompt(TRACKED, 0)
    ids, codes = prompt.rows[:, 0].tolist(), prompt.rows[:, 1:]
    prompt = replace(prompt, track=(20, 21), is_open=True)
    data = NewRequestData("r", ids, [], None, None, ([1],), 0, None, prefill_token_ids=ids)
    slots.fill(1, SpeechRequestData.extending(data, prompt, codes, rules.track(len(ids), (20, 21), is_open=True)))
    tables.apply_staged(arrays)
    assert tables.codes[1, :9, 7].tolist() == [*codes[:, 7], 20, 21, 6, 6]
    assert tables.codes[1, 9:, 7].unique().tolist() == [6]
    assert tables.limits[1, LIMITS["audio_min"]] == ENDLESS
    version = slots.version
    slots.extend_texts(
        {"r": NewText(rows_of([7, 22, 8, 23], 2), {}), "gone": NewText(rows_of([7, 50], 2), {"audio_min": 3})}
    )
    assert tables.codes[1, 5:10, 7].tolist() == [20, 21, 22, 23, 6]
    assert slots.version == version
    slots.extend_texts({"r": NewText(rows_of([9, 7], 2), {"audio_min": 5})})
    assert tables.codes[1, 8:11, 7].tolist() == [23, 7, 6]
    assert tables.limits[1, LIMITS["audio_min"]] == 5
    assert slots.version > version, "the plan of the step is made anew"
    assert (tables.codes[0] == 99).all()


@pytest.mark.parametrize("arrays", [HostArrays(), DeviceArrays(torch.device("cpu"))], ids=["numpy", "torch"])
def test_rows_need_both_heads_until_the_host_knows_where_audio_begins(arrays: Arrays) -> None:
    """On a CPU the host reads the tables. On a GPU the scheduler reports it; reports on other requests are ignored."""
    rules, prompt = SegmentRules(TINY, 128), make_prompt(TINY, 0, "tts")
    slots, ids, codes = (
        RunSlots(SlotTables(2, rules, torch.device("cpu")), rules, arrays),
        prompt.rows[:, 0],
        prompt.rows[:, 1:],
    )
    data = NewRequestData("r", ids.tolist(), [], None, None, ([1],), 0, None, prefill_token_ids=ids.tolist())
    slots.fill(1, SpeechRequestData.extending(data, prompt, codes))
    slots.tables.apply_staged(arrays)
    number = np.array([len(ids)])
    batch: Any = SimpleNamespace(
        idx_mapping_np=np.array([1]), num_computed_tokens_np=number, num_scheduled_tokens=1, prefill_len_np=number
    )
    is_on_host = isinstance(arrays, HostArrays)
    for starts, is_known in (({}, False), ({"s": 9}, False), ({"r": len(ids)}, True)):
        slots.note_audio(starts)
        rows = slots.rows(batch)
        assert (rows.may_write.tolist(), rows.may_speak.tolist()) == ([not is_known], [is_known or not is_on_host])
    slots.fill(1, SpeechRequestData.extending(data, prompt, codes))
    slots.tables.apply_staged(arrays)
    assert slots.rows(batch).may_write.all()
