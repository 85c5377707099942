"""Faults are put into speech at known places, the same in every run, and the clauses that are sent with one count."""

import argparse
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.checks import bounds, found, sentences, spoiled
from benchmarks.faulty_speech import FRAME_RATE, KINDS, RATE, SOUNDS, TAILS, FaultyClient, Frames, Plan, Samples
from stretto_client.model_profile import ModelProfile
from tests.client.test_checked_speech import spoken

SENTENCES = sentences(24)
FORMS = ["one clause", "8 clauses"]
ARGUMENTS = argparse.Namespace(check=["signals"], faulty=4, shares=[0.0, 0.5], draws=1, hold_s=[60.0], forms=FORMS)
SPEECH = np.repeat((20_000 * spoken(3.0)).astype(np.int16), 3)  # from 8 kHz


class StoredClient(FaultyClient):
    """Client whose texts all have the same speech."""

    async def speech(self, text: str, seed: int, frames: Frames = ()) -> Samples:
        return SPEECH

    async def profile(self, refresh: bool = False) -> ModelProfile:
        return ModelProfile("tiny", RATE, 300, frame_rate=FRAME_RATE, lookahead_frames=3)


@pytest.mark.parametrize("kind", SOUNDS)
def test_speech_is_unchanged_up_to_the_place_of_its_fault(kind: str) -> None:
    faulty = SOUNDS[kind](SPEECH, random.Random(1))
    place = round(faulty.start_s * RATE)
    np.testing.assert_array_equal(faulty.pcm[:place], SPEECH[:place])
    assert not np.array_equal(faulty.pcm, SPEECH)


def test_faults_depend_on_the_text_and_the_seed_only() -> None:
    plan = Plan(0.2)
    kinds = {(text, seed): plan.kind_of(text, seed)[0] for text in SENTENCES for seed in range(50)}
    assert kinds == {attempt: plan.kind_of(*attempt)[0] for attempt in reversed(kinds)}
    assert set(kinds.values()) == {None, *KINDS}
    assert 0.15 < sum(kind is not None for kind in kinds.values()) / len(kinds) < 0.25


async def test_each_kind_of_fault_is_counted(tmp_path: Path) -> None:
    async with StoredClient("localhost:1", tmp_path, SENTENCES) as client:
        records = {record["injected"]: record async for record in found(client, ARGUMENTS)}
    assert [records["clean"]["clips"], records["clean"]["found"]] == [24, 0]
    assert set(records) == {"clean", *KINDS}
    assert records["endless"]["signals"] == {"too_slow": 4, "ceiling": 4}
    assert set(TAILS) < set(records)


async def test_fewer_clauses_are_sent_with_a_fault_if_they_are_checked(tmp_path: Path) -> None:
    async with StoredClient("localhost:1", tmp_path, SENTENCES) as client:
        records = [record async for record in spoiled(client, ARGUMENTS)]
    counts = {(record["texts"], record["check"], record["share"]): record for record in records}
    assert {record["clauses"] for record in records} == {24}
    assert not any(record["spoiled"] for record in records if not record["share"])
    for form in ("one clause", "8 clauses"):
        off, signals, held = (
            counts[form, "off", 0.5],
            counts[form, "signals", 0.5],
            counts[f"{form}, 60 s held", "signals", 0.5],
        )
        assert off["spoiled"] >= signals["spoiled"] >= held["spoiled"]
        assert off["spoiled"] > held["spoiled"]
        assert signals["redrawn"] > 0
        assert signals["first_s"] == pytest.approx(off["first_s"])
    assert counts["8 clauses", "off", 0.5]["spoiled"] > counts["8 clauses", "signals", 0.5]["spoiled"]


def test_bounds_contain_the_share() -> None:
    low, high = bounds(0, 1000)
    assert low == 0.0
    assert high == pytest.approx(0.00383, abs=1e-4)
    assert bounds(5, 10)[0] < 0.5 < bounds(5, 10)[1]
