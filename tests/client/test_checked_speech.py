"""Clauses that are faulty before they are sent are generated again; the same in any division into events."""

from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import pytest

from stretto_client import SpeechEvent
from stretto_client.checked_speech import CheckedSpeech, Faults, Lead, Redrawn, seed_of
from stretto_client.signals import SignalMeter
from stretto_client.speech_stream import SpeechStream

RATE = 8_000
SEED = 7
TEXT = "a cat sat on the mat and went away"
RANDOM = np.random.default_rng(0)
REPORT = {"finish_reason": "stop", "seed": SEED}


def spoken(seconds: float) -> np.ndarray:
    """Return noise whose level and colour change all the time, as in speech."""
    parts = [np.cumsum(RANDOM.normal(size=480)) if number % 2 else RANDOM.normal(size=480) for number in range(400)]
    scaled = [0.1 * part / np.abs(part).max() * (1 + number % 3) for number, part in enumerate(parts)]
    pcm = np.concatenate(scaled)[: round(seconds * RATE)].astype(np.float32)
    pcm[-400:] = 0
    return pcm


GOOD = spoken(6.0)
SILENT = np.concatenate([spoken(1.0), np.zeros(3 * RATE, np.float32), spoken(2.0)])  # found after 3 s
SILENT_LATER = np.concatenate([spoken(2.0), np.zeros(3 * RATE, np.float32), spoken(1.0)])  # found after 4 s


class Attempts:
    """Server whose replies are these samples, one per attempt, in events of `size` samples."""

    def __init__(self, *replies: np.ndarray, size: int = 800, reason: str = "stop"):
        self._replies = [*replies]
        self._size = size
        self._reason = reason
        self.seeds = list[int | None]()
        self.num_open = 0

    def begin(self, seed: int | None) -> SpeechStream:
        self.seeds.append(seed)
        pcm = self._replies[len(self.seeds) - 1]
        return cast(SpeechStream, self._events(pcm))

    async def _events(self, pcm: np.ndarray) -> AsyncIterator[SpeechEvent]:
        self.num_open += 1
        try:
            starts = range(0, max(1, len(pcm)), self._size)
            for index, start in enumerate(starts):
                part = pcm[start : start + self._size]
                is_final = index == len(starts) - 1
                report = REPORT | {"finish_reason": self._reason} if is_final else None
                times = {"start_s": start / RATE, "duration_s": len(part) / RATE, "sample_rate": RATE}
                yield SpeechEvent(part, "u", index, "audio", is_final=is_final, report=report, **times)
        finally:
            self.num_open -= 1


async def heard(server: Attempts, sent_s: float = 12.0, attempts: int = 2) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the samples and the report of a clause that follows clauses of `sent_s` seconds."""
    lead = Lead()
    lead.add(sent_s)
    events = [event async for event in CheckedSpeech(server.begin, TEXT, SEED, lead, attempts)]
    assert server.num_open == 0
    assert events[-1].report is not None
    return np.concatenate([event.pcm for event in events if event.pcm is not None]), events[-1].report


def names(report: dict[str, Any]) -> list[str]:
    return [fault["fault"] for fault in report["faults"]]


@pytest.mark.parametrize("size", [100, 800, 5_000, 100_000])
async def test_clause_without_a_fault_is_sent_as_it_is(size: int) -> None:
    server = Attempts(GOOD, size=size)
    pcm, report = await heard(server)
    np.testing.assert_array_equal(pcm, GOOD)
    assert report == REPORT | {"faults": [], "redrawn": 0, "redrawn_s": 0.0}
    assert server.seeds == [SEED]


@pytest.mark.parametrize("size", [100, 800, 5_000, 100_000])
async def test_faulty_clause_is_generated_again_before_any_of_it_is_sent(size: int) -> None:
    server = Attempts(SILENT, GOOD, size=size)
    pcm, report = await heard(server)
    np.testing.assert_array_equal(pcm, GOOD)
    assert (names(report), report["redrawn"]) == ([], 1)
    assert server.seeds == [SEED, seed_of(SEED, 1)]
    assert len({seed_of(SEED, number) for number in range(5)}) == 5


@pytest.mark.parametrize("size", [100, 800, 5_000, 100_000])
async def test_fault_after_the_clause_was_sent_is_only_reported(size: int) -> None:
    """A third of the clauses before is held back, 2.9 s; the silence is found after 3 s."""
    server = Attempts(SILENT, GOOD, size=size)
    pcm, report = await heard(server, sent_s=8.7)
    np.testing.assert_array_equal(pcm, SILENT)
    assert report["faults"] == [{"fault": "silence", "start_s": pytest.approx(1.0, abs=0.06)}]
    assert (report["redrawn"], len(server.seeds)) == (0, 1)


async def test_first_clause_is_sent_at_once() -> None:
    server = Attempts(SILENT, GOOD)
    speech = CheckedSpeech(server.begin, TEXT, SEED, Lead(), 2)
    await anext(speech)
    rest = [event async for event in speech]
    assert rest[-1].report is not None
    assert (names(rest[-1].report), len(server.seeds)) == (["silence"], 1)


async def test_last_attempt_is_sent_whatever_its_faults() -> None:
    server = Attempts(SILENT, SILENT_LATER, SILENT)
    pcm, report = await heard(server, sent_s=20.0, attempts=3)
    np.testing.assert_array_equal(pcm, SILENT)
    assert (names(report), report["redrawn"]) == (["silence"], 2)
    assert report["redrawn_s"] == pytest.approx(3.0 + 4.0, abs=0.2)
    assert server.seeds == [SEED, seed_of(SEED, 1), seed_of(SEED, 2)]


async def test_single_attempt_is_not_held_back() -> None:
    server = Attempts(SILENT)
    _, report = await heard(server, attempts=1)
    assert (names(report), report["redrawn"], server.seeds) == (["silence"], 0, [SEED])


async def test_reply_without_sound_is_too_fast() -> None:
    server = Attempts(GOOD[:0], GOOD)
    _, report = await heard(server, sent_s=0.0)
    assert names(report) == ["too_fast"]


async def test_speed_of_a_piece_of_the_text_is_not_measured() -> None:
    long_text = 20 * TEXT
    for num_pieces, faults in ((1, ["too_fast"]), (4, [])):
        measured = Faults(long_text, Redrawn())
        report = REPORT | {"num_pieces": num_pieces}
        event = SpeechEvent(GOOD, "u", 0, "audio", sample_rate=RATE, is_final=True, report=report)
        assert names(cast(dict[str, Any], measured.marked(event).report)) == faults


@pytest.mark.parametrize("text", ['Wait <break time="3s"/> a moment for us.', "Wait [pause 3.0s] a moment for us."])
async def test_pauses_of_the_text_are_no_faults(text: str) -> None:
    meter = SignalMeter(text, RATE)
    assert [*meter.push(SILENT)] == []
    assert [fault.name for fault in SignalMeter("Wait a moment for us.", RATE).push(SILENT)] == ["silence"]


@pytest.mark.parametrize("num_samples", [RATE, RATE + 1, RATE + 100, RATE + 160, RATE + 240, RATE + 479])
def test_abrupt_end_is_found_at_any_length(num_samples: int) -> None:
    tone = np.sin(np.arange(num_samples) / 3).astype(np.float32) / 3
    assert [fault.name for fault in [*_pushed(tone).end()]] == ["abrupt_end"]
    assert [*_pushed(np.concatenate([tone, np.zeros(RATE // 10, np.float32)])).end()] == []


def _pushed(pcm: np.ndarray) -> SignalMeter:
    meter = SignalMeter("", RATE)
    for start in range(0, len(pcm), 37):
        assert [*meter.push(pcm[start : start + 37])] == []
    return meter


@pytest.mark.parametrize("reason", ["ceiling", "repetition"])
async def test_limits_of_the_server_are_faults(reason: str) -> None:
    server = Attempts(GOOD, GOOD, reason=reason)
    _, report = await heard(server, sent_s=20.0)
    assert (names(report), report["redrawn"]) == ([reason], 1)


async def test_length_of_the_request_is_no_fault() -> None:
    _, report = await heard(Attempts(GOOD[: 5 * RATE], reason="length"))
    assert names(report) == []
