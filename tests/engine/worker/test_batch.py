"""The batch plan equals a plain loop, and contains only what the host can know."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stretto.engine.columns import COLUMNS_OFF, LIMITS, SCALES
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.sampling.noise import stream_keys
from stretto.engine.worker.batch_plan import BatchPlan, BatchPlanner, PlanArrays, StepRows, plan_batch
from stretto.engine.worker.run_slots import STEPS_AHEAD, KeysAhead
from stretto.engine.worker.slots import DeviceArrays, HostArrays, SlotTables
from stretto.testing.checkpoints import make_prompt
from tests.speech_families import EIGHT_STREAMS

NUM_SLOTS = 10


def filled() -> SlotTables:
    """Return slots whose replies have different temperatures and scales; those with even numbers are greedy in text."""
    rules = SegmentRules(EIGHT_STREAMS, 64)
    tables = SlotTables(NUM_SLOTS, rules, torch.device("cpu"))
    for slot in range(NUM_SLOTS):
        prompt = make_prompt(EIGHT_STREAMS, slot, "chat", guidance_scale=1.0 + slot)
        text = replace(prompt.sampling.text, temperature=0.1 * (slot % 2), top_k=slot)
        sampling = replace(prompt.sampling, text=text)
        reply = ReplyState.begin(rules, EIGHT_STREAMS.task("chat"), 5)
        codes = np.zeros((5, EIGHT_STREAMS.layout.num_input_streams - 1), np.int32)
        tables.stage(slot, replace(prompt, sampling=sampling, rows=prompt.rows[:5]), reply, codes)
    tables.apply_staged(HostArrays())
    return tables


def make_rows(random: np.random.Generator) -> tuple[StepRows, np.ndarray, np.ndarray]:
    """Return a batch of some slots in any order; the first six slots hold three CFG pairs."""
    partner = np.array([1, 0, 3, 2, 5, 4, -1, -1, -1, -1])
    is_unconditional = np.array([False, True] * 3 + [False] * 4)
    slots = random.permutation(NUM_SLOTS)[: random.integers(1, NUM_SLOTS + 1)]
    samples = random.random(len(slots)) < 0.8
    may_write = random.random(len(slots)) < 0.5
    return (
        StepRows(slots, samples, may_write, ~may_write | (random.random(len(slots)) < 0.3)),
        partner,
        is_unconditional,
    )


def take(rows: np.ndarray, index: np.ndarray | None) -> list[int]:
    return (rows if index is None else rows[index]).tolist()


@pytest.mark.parametrize("seed", range(30))
def test_batch_plan_matches_a_plain_loop(seed: int) -> None:
    rows, partner, is_unconditional = make_rows(np.random.default_rng(seed))
    row_of = {int(slot): row for row, slot in enumerate(rows.slots) if rows.samples[row]}
    pairs = {row: row_of.get(int(partner[slot])) for slot, row in row_of.items() if not is_unconditional[slot]}
    plan = plan_batch(rows, partner, is_unconditional, filled())
    drawing = plan.drawing.tolist()
    assert sorted(drawing) == sorted(pairs)
    assert plan.sampling.tolist()[len(drawing) :] == [pairs[row] for row in drawing[: plan.num_paired]]
    assert all(pairs[row] is None for row in drawing[plan.num_paired :])
    assert set(take(plan.drawing, plan.writing)) == {row for row in pairs if rows.may_write[row]}
    speaking = {row for row, other in pairs.items() if rows.may_speak[row] or other is not None}
    assert set(take(plan.drawing, plan.speaking)) == speaking
    assert take(plan.drawing, plan.speaking)[: plan.num_paired] == drawing[: plan.num_paired]


@pytest.mark.parametrize("arrays", [HostArrays(), DeviceArrays(torch.device("cpu"))], ids=["numpy", "torch"])
def test_plan_arrays_match_the_rows_of_the_plan(arrays: HostArrays | DeviceArrays) -> None:
    tables = filled()
    for seed in range(20):
        rows, partner, is_unconditional = make_rows(np.random.default_rng(seed))
        plan = plan_batch(rows, partner, is_unconditional, tables)
        step = PlanArrays.from_plan(plan, rows, tables, arrays)
        drawing = rows.slots[plan.drawing]
        assert np.allclose(step.scales.guidance, 1.0 + drawing)
        assert np.allclose(step.guidance, 1.0 + drawing[: plan.num_paired])
        assert np.array_equal(step.text.top_k, rows.slots[take(plan.drawing, plan.writing)])
        heard = np.arange(plan.num_rows) if step.audio_rows is None else np.asarray(step.audio_rows)
        assert heard.tolist() == take(plan.drawing, plan.speaking) + plan.sampling[len(drawing) :].tolist()
        assert np.array_equal(step.num_sampled, rows.samples)


def test_row_features_affect_only_the_plan_of_their_batch() -> None:
    tables, nobody = filled(), np.full(NUM_SLOTS, -1)
    tables.limits[:, LIMITS["forced_until"]] = 0
    for name, number in COLUMNS_OFF.items():
        tables.scales[:, SCALES[name]] = number
    tables.scales[4, SCALES["ras_window"]] = 7
    tables.limits[4, LIMITS["forced_until"]] = 9
    tables.scales[4, SCALES["min_p"]] = 2.5
    for slots, expected in (([3, 4, 5], ({"ras_window", "min_p"}, 7, True)), ([3, 5], (set(), 0, False))):
        everyone = np.ones(len(slots), np.bool_)
        plan = plan_batch(StepRows(np.array(slots), everyone, ~everyone, everyone), nobody, nobody > 0, tables)
        assert (plan.used, plan.ras_window, plan.has_delayed_tail) == expected


def test_batch_plan_is_cached_until_the_batch_changes() -> None:
    rows, partner, is_unconditional = make_rows(np.random.default_rng(3))
    planner = BatchPlanner(filled(), HostArrays())

    def plan(these: StepRows) -> BatchPlan:
        return planner.plan(these, partner, is_unconditional)[0]

    first = plan(rows)
    assert plan(replace(rows, slots=rows.slots.copy())) is first
    assert plan(replace(rows, may_write=~rows.may_write)) is not first
    first = plan(rows)
    planner.forget()
    assert plan(rows) is not first


def test_all_speech_batch_skips_the_text_head() -> None:
    slots, everyone = np.arange(4), np.ones(4, np.bool_)
    nobody = np.full(NUM_SLOTS, -1)
    plan = plan_batch(StepRows(slots, everyone, ~everyone, everyone), nobody, nobody > 0, filled())
    assert plan.may_speak
    assert not plan.may_write


def test_noise_keys_computed_ahead_equal_per_step_keys() -> None:
    noise, seeds = KeysAhead(lambda keys, positions: stream_keys(keys, positions, 5)), np.array([7, -3, 7], np.int32)
    rows, partner, is_unconditional = make_rows(np.random.default_rng(3))
    plans = [plan_batch(rows, partner, is_unconditional, filled()) for _ in range(2)]
    positions = np.array([4, 90, 31], np.int32)
    for step, at in enumerate([*range(40), 41, 44, 45, 45, 12, *range(13, 40)]):
        keys = noise.keys(plans[step == 20], seeds, positions + np.int32(at))
        assert keys.dtype == np.int32
        assert np.array_equal(keys, stream_keys(seeds, positions + np.int32(at), 5)), step
    changed = np.array([1, 2], np.int32)
    keys = noise.keys(plans[1], changed, changed)
    assert np.array_equal(keys, stream_keys(changed, changed, 5))


def test_steady_batch_computes_noise_keys_for_several_steps_at_once() -> None:
    calls = list[int]()

    def make(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        calls.append(len(positions))
        return stream_keys(keys, positions, 5)

    rows, partner, is_unconditional = make_rows(np.random.default_rng(3))
    plan, noise = plan_batch(rows, partner, is_unconditional, filled()), KeysAhead(make)
    for at in range(1 + 2 * STEPS_AHEAD):
        noise.keys(plan, np.array([7], np.int32), np.array([at], np.int32))
    assert calls == [1, STEPS_AHEAD, STEPS_AHEAD]
