from dataclasses import replace

import numpy as np
import pytest
import torch
from vllm.v1.core.sched.output import NewRequestData

from stretto.engine.protocol import SpeechParams
from stretto.engine.reply_rules import SegmentRules, SegmentTracker
from stretto.engine.step_records import NewText, SpeechRequestData
from stretto.engine.tracks import ENDLESS, rows_of
from stretto.engine.worker.run_slots import RunSlots
from stretto.engine.worker.slots import LIMITS, STATE, Arrays, DeviceArrays, HostArrays, SlotTables, state_row
from stretto.families.tiny.family import END_OF_TEXT, FIRST_PHONEME, TINY
from stretto.testing.checkpoints import make_prompt
from tests.small_vocabularies import HIGGS_AUDIO
from tests.speech_families import INTERLEAVED, TRACKED


@pytest.mark.parametrize("arrays", [HostArrays(), DeviceArrays(torch.device("cpu"))], ids=["numpy", "torch"])
def test_slots_staged_together_hold_the_state_of_each_reply(arrays: Arrays) -> None:
    rules = SegmentRules(TINY, 128)
    tables = SlotTables(4, rules, torch.device("cpu"))
    staged = {}
    for slot, index in ((2, 0), (0, 2), (3, 6)):
        prompt = make_prompt(TINY, index, "tts")
        tracker = SegmentTracker(rules, TINY.task("tts"), len(prompt.rows))
        for token in [FIRST_PHONEME + n for n in range(index)] + [END_OF_TEXT] * (index > 2):
            tracker.push(token)
        codes = np.random.default_rng(index).integers(0, 99, (tracker.position, 8)).astype(np.int32)
        tables.stage(slot, SpeechParams("tts", prompt.sampling, codes), tracker, codes)
        staged[slot] = (tracker, codes)
    before = tables.codes[1].clone()
    tables.apply_staged(arrays)
    for slot, (tracker, codes) in staged.items():
        assert tables.state[slot].tolist() == state_row(tracker)
        assert tables.script[slot, 1 : 1 + len(tracker.script)].tolist() == tracker.script
        assert np.array_equal(tables.codes[slot, : len(codes)], codes)
        assert not tables.codes[slot, len(codes) :].any()
    assert torch.equal(tables.codes[1], before)
    tables.state.zero_()
    tables.apply_staged(arrays)
    assert not tables.state.any(), "what was staged was written once"


@pytest.mark.parametrize(("ends", "expected"), [({}, -1), ({1: 2}, 7), ({0: 1, 3: 2}, 6), ({2: 0, 0: 1}, 5)])
def test_slot_restores_the_first_row_with_an_end_code(ends: dict[int, int], expected: int) -> None:
    """After a preemption, the prompt has five rows (the last with end codes) and three more; `ends` is by stream."""
    rules, layout = SegmentRules(HIGGS_AUDIO, 128), HIGGS_AUDIO.layout
    rows = np.tile([ids.start for ids in layout.audio], (8, 1))
    rows[4] = [end for _, end in layout.extra]
    for stream, row in ends.items():
        rows[5 + row, stream] = layout.extra[stream][1]
    tracker = SegmentTracker(rules, HIGGS_AUDIO.tasks[0], 5)
    for row in rows[5:]:
        tracker.push(int(row[0]))
    tables, sampling = SlotTables(1, rules, torch.device("cpu")), replace(HIGGS_AUDIO.tasks[0].sampling, seed=0)
    tables.stage(0, SpeechParams("tts", sampling, rows[:5, 1:]), tracker, rows[:, 1:])
    tables.apply_staged(HostArrays())
    assert tables.state[0, STATE["first_end"]] == expected


@pytest.mark.parametrize(("counted", "expected"), [("all", {3, 7, 20, 21}), ("drawn", {20, 21})])
def test_slot_restores_the_tokens_its_reply_has_generated(counted: str, expected: set[int]) -> None:
    """After a preemption, the prompt is 3 and 7, and the reply has reached 20 and 21."""
    rules = SegmentRules(replace(INTERLEAVED, penalized=counted), 128)
    slots = RunSlots(SlotTables(2, rules, torch.device("cpu")), rules, HostArrays(), 1)
    slots.tables.seen[1] = True
    sampling = INTERLEAVED.tasks[0].sampling
    params = SpeechParams("reply", replace(sampling, seed=0), np.zeros((2, 0), np.int32))
    data = NewRequestData("r", [3, 7], [], None, None, ([1],), 0, None, prefill_token_ids=[3, 7, 20, 21])
    slots.fill(1, SpeechRequestData.extending(data, params, np.zeros((4, 0), np.int32)))
    slots.tables.apply_staged(HostArrays())
    assert set(slots.tables.seen[1].nonzero().flatten().tolist()) == expected
    assert not slots.tables.seen[0].any()


def test_slot_text_is_extended_at_its_track_position() -> None:
    """This holds whatever the previous reply has left there. The end of the text lets the audio end."""
    rules = SegmentRules(TRACKED, 64)
    tables = SlotTables(2, rules, torch.device("cpu"))
    tables.codes[:] = 99
    arrays = HostArrays()
    slots = RunSlots(tables, rules, arrays, 1)
    prompt = make_prompt(TRACKED, 0)
    ids, codes = prompt.rows[:, 0].tolist(), prompt.rows[:, 1:]
    params = SpeechParams(prompt.task, prompt.sampling, codes, track=(20, 21), is_open=True)
    data = NewRequestData("r", ids, [], None, None, ([1],), 0, None, prefill_token_ids=ids)
    slots.fill(1, SpeechRequestData.extending(data, params, codes, rules.track(len(ids), (20, 21), is_open=True)))
    tables.apply_staged(arrays)
    assert tables.codes[1, :9, 7].tolist() == [*codes[:, 7], 20, 21, 6, 6]
    assert tables.codes[1, 9:, 7].unique().tolist() == [6]
    assert tables.limits[1, LIMITS["audio_min"]] == ENDLESS
    version = slots.version
    slots.extend_texts({"r": NewText(7, rows_of([22, 23], 1), None), "gone": NewText(7, rows_of([50], 1), 3)})
    assert tables.codes[1, 5:10, 7].tolist() == [20, 21, 22, 23, 6]
    assert slots.version == version
    slots.extend_texts({"r": NewText(9, rows_of([7], 1), 5)})
    assert tables.codes[1, 8:11, 7].tolist() == [23, 7, 6]
    assert tables.limits[1, LIMITS["audio_min"]] == 5
    assert slots.version > version, "the plan of the step is made anew"
    assert (tables.codes[0] == 99).all()
