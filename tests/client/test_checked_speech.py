"""Faulty clauses are generated again from the end of the sent samples, however these are divided into events."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from stretto_client import SpeechEvent, Word, checked_speech
from stretto_client.checked_speech import (
    MAX_HELD_BYTES,
    MAX_LATE,
    Attempt,
    Judge,
    Lead,
    attempts_of,
    checked,
    num_equal_frames,
)
from stretto_client.errors import ServerFull
from stretto_client.long_speech import Speech
from stretto_client.model_profile import ModelProfile
from stretto_client.sent_speech import SentSpeech
from stretto_client.signals import Fault, SignalMeter
from stretto_client.speech_stream import SpeechStream
from stretto_client.tries import Begin, events_in_turn, once
from stretto_contract.speech_checks import Pace, SignalLimits

RATE = 8_000
SEED = 7
TEXT = "a cat sat on the mat and went away"
RANDOM = np.random.default_rng(0)
FRAME_RATE = 25.0
LOOKAHEAD = 2
PROFILE = ModelProfile("a", RATE, 100, frame_rate=FRAME_RATE, lookahead_frames=LOOKAHEAD)
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
FULL: list[Any] = [ServerFull("full")]  # reply of a server without a place


async def profile() -> ModelProfile:
    return PROFILE


def drawn(replies: list[Any], frames: list[int]) -> Any:
    """Return the reply whose samples are those of reply number n after n of the frames."""
    borders = [0, *(round(frame / FRAME_RATE * RATE) for frame in frames), None]
    parts = [replies[number][borders[number] : borders[number + 1]] for number in range(len(frames) + 1)]
    return np.concatenate(parts)


class Attempts:
    """Server that speaks with these samples, one array per attempt, in events of `size` samples."""

    def __init__(self, *replies: Any, size: int = 800, reason: str = "stop", full: int = 0):
        self._replies = [*replies]
        self._size = size
        self._reason = reason
        self._num_full = full  # requests to draw anew that meet a full server
        self.redraws = list[list[int]]()
        self.num_open = 0

    def begin(self, frames: list[int]) -> SpeechStream:
        self.redraws.append(frames)
        is_full = bool(frames) and self._num_full > 0
        self._num_full -= is_full
        return cast(
            SpeechStream, aclosing(self._events(FULL if is_full else drawn(self._replies, frames), len(frames)))
        )

    async def _events(self, pcm: Any, attempt: int) -> AsyncGenerator[SpeechEvent, None]:
        self.num_open += 1
        try:
            if pcm is FULL:
                raise FULL[0]
            starts = range(0, max(1, len(pcm)), self._size)
            for index, start in enumerate(starts):
                part = pcm[start : start + self._size]
                is_final = index == len(starts) - 1
                report = REPORT | {"finish_reason": self._reason} if is_final else None
                times = {"start_s": start / RATE, "duration_s": len(part) / RATE, "sample_rate": RATE}
                words = (Word(str(attempt), start / RATE),)
                codes = np.arange(start, start + len(part))[None] // 320 if is_final else None
                given: dict[str, Any] = {"words": words, "codes": codes, "text": f"{index}."}
                yield SpeechEvent(
                    part, f"u{attempt}", index, "audio", is_final=is_final, report=report, **given, **times
                )
        finally:
            self.num_open -= 1

    def speak(self, attempts: int = 2, sent_s: float = 0.0, hold_s: float = 0.0, judge: Judge | None = None) -> Speech:
        """Speak a clause that follows clauses of `sent_s` seconds."""
        lead = Lead(hold_s)
        lead.add(round(sent_s * RATE))
        begin = lambda options, _: self.begin(options.get("redraw_from", []))  # noqa: E731
        return checked(begin, {"seed": SEED}, attempts, lead, patiently, judge, profile)(TEXT)


async def patiently() -> AsyncGenerator[None, None]:
    """Yield as often as a request is to be sent."""
    while True:
        yield


async def heard(
    server: Attempts, sent_s: float = 12.0, attempts: int = 2, hold_s: float = 0.0, judge: Judge | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the samples and the report of a clause that follows clauses of `sent_s` seconds."""
    events = [event async for event in server.speak(attempts, sent_s, hold_s, judge)]
    assert server.num_open == 0
    assert [event.index for event in events] == [*range(len(events))]
    assert len({event.utterance for event in events}) == 1
    position = 0
    for event in events:
        if event.pcm is not None:
            assert (event.start_s, event.duration_s) == pytest.approx((position / RATE, len(event.pcm) / RATE))
            position += len(event.pcm)
    report = events[-1].report
    assert report is not None
    redrawn_s = [event.redrawn_s for event in events if event.redrawn_s is not None]
    assert (len(redrawn_s), sum(redrawn_s)) == (report["redrawn"], report["redrawn_s"])
    return np.concatenate([event.pcm for event in events if event.pcm is not None]), report


def names(report: dict[str, Any]) -> list[str]:
    return [fault["fault"] for fault in report["faults"]]


@pytest.mark.parametrize("size", [100, 800, 5_000, 100_000])
async def test_clause_without_a_fault_is_sent_as_it_is(size: int) -> None:
    server = Attempts(GOOD, size=size)
    pcm, report = await heard(server)
    np.testing.assert_array_equal(pcm, GOOD)
    assert report == REPORT | {"faults": [], "redrawn": 0, "redrawn_s": 0.0, "redraw_from": [[]]}
    assert server.redraws == [[]]


# The speech that was sent before the clause, and what is held back, in seconds; the first frame that is drawn anew.
# The silence is found after 3 s, of which 2.3 s may have been sent if nothing is held back; 2 frames later, all is new.
CUTS = [(12.0, 0.0, 0), (0.0, 0.0, 61), (0.0, 0.5, 61), (0.0, 2.0, 27), (0.0, 2.98, 3), (0.0, 3.0, 0), (0.0, 60.0, 0)]


@pytest.mark.parametrize("size", [100, 800, 5_000, 100_000])
@pytest.mark.parametrize(("sent_s", "hold_s", "cut"), CUTS)
async def test_faulty_clause_goes_on_from_what_was_sent(sent_s: float, hold_s: float, cut: int, size: int) -> None:
    server = Attempts(SILENT, GOOD, size=size)
    pcm, report = await heard(server, sent_s=sent_s, hold_s=hold_s)
    np.testing.assert_array_equal(pcm, drawn([SILENT, GOOD], [cut]))
    assert (server.redraws, names(report), report["redrawn"]) == ([[], [cut]], [], 1)
    assert report["redrawn_s"] == pytest.approx(max(3.0, size / RATE), abs=0.61) or size == 100_000


@pytest.mark.parametrize("size", [100, 800, 5_000])
async def test_samples_that_were_sent_are_those_before_the_first_new_frame(size: int) -> None:
    """For each attempt that is given up, with events of any size."""
    later = np.concatenate([spoken(2.5), np.zeros(3 * RATE, np.float32), spoken(1.0)])
    replies = [SILENT, later, GOOD]
    server = Attempts(*replies, size=size)
    sent = 0
    events = [event async for event in server.speak(attempts=3)]
    for event in events:
        sent += 0 if event.pcm is None else len(event.pcm)
        if event.redrawn_s is not None:
            assert event.start_s == pytest.approx(sent / RATE)
    assert server.redraws == [
        [],
        [61],
        [61, 86],
    ]  # the second one is faulty after 4.5 s, of which 3.3 s may have been sent
    pcm = np.concatenate([event.pcm for event in events if event.pcm is not None])
    np.testing.assert_array_equal(pcm, drawn(replies, [61, 86]))


@pytest.mark.parametrize("size", [100, 800, 5_000, 100_000])
async def test_words_text_and_codes_are_sent_once(size: int) -> None:
    events = [event async for event in Attempts(SILENT, GOOD, size=size).speak()]
    starts = range(0, len(GOOD), size)
    words = [word for event in events for word in event.words]
    assert [word.start_s for word in words] == [start / RATE for start in starts]
    assert "".join(event.text for event in events) == "".join(f"{index}." for index in range(len(starts)))
    (codes,) = [event.codes for event in events if event.codes is not None]
    assert codes.shape[1] == len(GOOD) - starts[-1]
    for event in events:
        for word in event.words:
            assert event.start_s <= word.start_s < event.start_s + event.duration_s


def test_word_that_is_not_complete_has_the_end_of_the_next_attempt() -> None:
    """The words of an event are sent up to the border of the sent samples; those that cross it may end differently."""
    pcm = np.zeros(RATE, np.float32)
    words = (Word("a", 0.0, 0.2), Word("cat", 0.3, 0.6), Word("sat", 0.7))
    event = SpeechEvent(pcm, "u", 0, "audio", words=words, duration_s=1.0, sample_rate=RATE)
    sent = SentSpeech()
    first, later = sent.split(event, RATE // 2)
    assert first is not None
    assert later is not None
    assert first.words == words[:1]
    assert later.words == words[1:]
    sent.add(first)
    sent.begin_attempt()
    redrawn = (words[0], Word("cat", 0.3, 0.9))
    (rest,) = sent.rest(replace(event, words=redrawn))
    assert rest.words == redrawn[1:]


@pytest.mark.parametrize("size", [100, 800, 5_000, 20_000])
async def test_first_samples_are_sent_at_once(size: int) -> None:
    server = Attempts(GOOD, size=size)
    first = await anext(server.speak())
    assert first.pcm is not None
    assert len(first.pcm) == {100: 100, 800: 800, 5_000: 5_000, 20_000: 15_787}[size]


async def test_fault_in_speech_that_was_sent_at_once_is_only_reported() -> None:
    tone = np.sin(np.arange(6_400)).astype(np.float32)
    _, report = await heard(Attempts(tone, GOOD), sent_s=0.0)
    assert (names(report), report["redrawn"]) == (["abrupt_end", "clipping"], 0)


@pytest.mark.parametrize(
    ("one", "other", "number"),
    [((), (5,), 5), ((5,), (5, 9), 9), ((5,), (3, 3), 3), ((4, 4), (4,), 4), ((2, 7), (2, 7), float("inf"))],
)
def test_attempts_are_equal_up_to_the_first_frame_that_one_draws_anew(
    one: tuple[int, ...], other: tuple[int, ...], number: float
) -> None:
    assert num_equal_frames(one, other) == num_equal_frames(other, one) == number


HUMMING = np.concatenate([spoken(1.0), np.sin(np.arange(3 * RATE)).astype(np.float32) / 3, spoken(2.0)])
ABRUPT = np.concatenate([spoken(2.0), np.sin(np.arange(800)).astype(np.float32)])
ORDERS = {
    "last": ([SILENT, ABRUPT], 1),
    "first": ([ABRUPT, SILENT], 0),
    "second of three": ([SILENT, SILENT_LATER, SILENT], 1),
    "last of equal ones": ([SILENT, SILENT], 1),
    "milder": ([SILENT_LATER, HUMMING, SILENT], 1),
}


@pytest.mark.parametrize("size", [100, 5_000, 100_000])
@pytest.mark.parametrize(("replies", "best"), ORDERS.values(), ids=ORDERS)
async def test_best_attempt_is_sent_if_all_are_faulty(replies: list[np.ndarray], best: int, size: int) -> None:
    """The one with the mildest first fault or, of those, the latest one. Earlier attempts are generated again."""
    is_again = best < len(replies) - 1
    server = Attempts(*replies, size=size)
    pcm, report = await heard(server, sent_s=20.0, attempts=len(replies))
    np.testing.assert_array_equal(pcm, replies[best])
    redraws = [[0] * number for number in range(len(replies))]
    assert server.redraws == [*redraws, *([redraws[best]] if is_again else [])]
    assert (len(report["faults"]), report["redrawn"], report["seed"]) == (1, len(server.redraws) - 1, SEED)


async def test_earlier_attempt_is_not_sent_if_a_later_one_was_sent_in_part() -> None:
    """The second attempt is worse, but more of it may have been sent than it has in common with the first one."""
    milder = np.concatenate([spoken(2.0), np.sin(np.arange(2 * RATE)).astype(np.float32) / 3, spoken(2.0)])
    worse = np.concatenate([spoken(4.5), np.zeros(3 * RATE, np.float32), spoken(1.0)])
    server = Attempts(milder, worse)
    pcm, report = await heard(server, sent_s=0.0)
    np.testing.assert_array_equal(pcm, drawn([milder, worse], server.redraws[1]))
    assert (names(report), report["redrawn"], len(server.redraws)) == (["silence"], 1, 2)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100])
def test_what_is_held_back_does_not_depend_on_the_division_into_events(rate: int) -> None:
    """Nor do the times of faults, where 60 ms are no whole number of samples."""
    whole = Lead()
    divided = Lead()
    whole.add(9 * rate)
    for _ in range(9 * rate // 7):
        divided.add(7)
    divided.add(9 * rate % 7)
    assert whole.num_free(10 * rate, rate, 4) == divided.num_free(10 * rate, rate, 4) == 4 * rate
    (fault,) = SignalMeter(TEXT, rate).push(np.zeros(3 * rate, np.float32))
    assert (fault.found_s * rate) % round(0.06 * rate) == pytest.approx(0, abs=1e-6)


def test_samples_that_are_held_back_are_bounded() -> None:
    lead = Lead(60.0)
    most = MAX_HELD_BYTES // 4
    assert [lead.num_free(number, 192_000, 4) for number in (most, most + 1, 2 * most)] == [0, 1, most]
    assert Lead().num_free(100 * RATE, RATE, 4) == 90 * RATE


async def test_attempts_to_redraw_wait_for_a_place_on_a_full_server() -> None:
    """They go on with the attempt that was refused."""
    server = Attempts(SILENT, GOOD, full=2)
    pcm, report = await heard(server)
    np.testing.assert_array_equal(pcm, GOOD)
    assert (report["redrawn"], server.redraws) == (1, [[], *[[0]] * 3])


async def test_clause_that_meets_a_full_server_in_vain_does_not_begin_again() -> None:
    server = Attempts(SILENT, GOOD, full=1)
    begin = lambda options, _: server.begin(options.get("redraw_from", []))  # noqa: E731
    speak = checked(begin, {"seed": SEED}, 2, Lead(60.0), once, None, profile)
    with pytest.raises(ServerFull):
        _ = [event async for event in events_in_turn(cast(Begin, lambda: speak(TEXT)), patiently)]
    assert server.redraws == [[], [0]]


async def test_speech_that_is_given_up_is_reported_at_once() -> None:
    server = Attempts(SILENT, SILENT_LATER, GOOD)
    speech = server.speak(attempts=3, hold_s=60.0)
    begun, *given_up = [await anext(speech) for _ in range(3)]
    assert (begun.pcm, begun.redrawn_s) == (None, None)
    assert [event.redrawn_s for event in given_up] == [pytest.approx(3.0, abs=0.1), pytest.approx(4.0, abs=0.1)]
    assert all(event.pcm is None and event.report is None and not event.words for event in given_up)


async def test_words_are_those_of_the_attempt_that_is_sent() -> None:
    events = [event async for event in Attempts(SILENT, GOOD).speak(hold_s=60.0)]
    spoken_words = [event for event in events if event.words]
    assert {word.word for event in spoken_words for word in event.words} == {"1"}
    assert [event.words[0].start_s for event in spoken_words] == [event.start_s for event in spoken_words]


@pytest.mark.parametrize(("hold_s", "num_redrawn"), [(0.0, 0), (5.9, 0), (6.0, 1), (60.0, 1)])
@pytest.mark.parametrize("size", [800, 100_000])
async def test_whole_attempts_are_judged_before_they_are_sent_if_they_are_held(
    hold_s: float, num_redrawn: int, size: int
) -> None:
    judged = list[float]()

    async def judge(attempt: Attempt, report: dict[str, Any]) -> None:
        assert report == REPORT
        judged.append(sum(map(len, attempt.chunks)) / RATE)
        attempt.report["judged"] = True
        if len(judged) == 1:
            attempt.faults.append(Fault("words", 0.0, attempt.seconds))

    pcm, report = await heard(Attempts(GOOD, GOOD, size=size), sent_s=0.0, hold_s=hold_s, judge=Judge(judge))
    np.testing.assert_array_equal(pcm, GOOD)
    assert judged == [6.0] * (1 + num_redrawn)
    assert (report["redrawn"], report["judged"], names(report)) == (num_redrawn, True, ["words"] * (1 - num_redrawn))


@pytest.mark.parametrize(
    ("replies", "fault"), [((ABRUPT, ABRUPT), "abrupt_end"), ((SILENT_LATER, SILENT, SILENT_LATER), "silence")]
)
async def test_judge_sees_the_faults_of_speech_that_is_sent(replies: list[np.ndarray], fault: str) -> None:
    judged = list[Attempt]()

    async def judge(attempt: Attempt, report: dict[str, Any]) -> None:
        judged.append(attempt)

    _, report = await heard(Attempts(*replies[:2]), hold_s=60.0, judge=Judge(judge))
    assert names(report) == [fault]
    assert [found.name for attempt in judged for found in attempt.faults] == [fault]


async def test_samples_of_attempts_that_were_given_up_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[Attempt]()

    def attempt(*arguments: Any, **options: Any) -> Attempt:
        opened.append(Attempt(*arguments, **options))
        return opened[-1]

    async def judge(_: Attempt, __: dict[str, Any]) -> None:
        assert [earlier.chunks + earlier.held for earlier in opened[:-1]] == [[], []]

    monkeypatch.setattr(checked_speech, "Attempt", attempt)
    await heard(Attempts(SILENT, SILENT, GOOD), attempts=3, hold_s=60.0, judge=Judge(judge))
    assert len(opened) == 3


async def test_samples_are_not_delayed_by_the_judge_of_sent_speech() -> None:
    may_judge = asyncio.Event()

    async def judge(attempt: Attempt, report: dict[str, Any]) -> None:
        await may_judge.wait()

    speech = Attempts(GOOD).speak(judge=Judge(judge))
    num_samples = num_events = 0
    while num_samples < len(GOOD):
        event = await anext(speech)
        num_events += 1
        assert event.pcm is not None
        assert not event.is_final
        num_samples += len(event.pcm)
    may_judge.set()
    last = await anext(speech)
    assert (last.pcm, last.is_final, last.index, last.start_s) == (None, True, num_events, 6.0)
    assert [event async for event in speech] == []


async def test_few_clauses_are_judged_late_and_none_after_the_text() -> None:
    begun = list[Attempt]()
    ended = list[Attempt]()

    async def measure(attempt: Attempt, report: dict[str, Any]) -> None:
        begun.append(attempt)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(attempt)

    async with Judge(measure) as judge:
        clauses = [Attempt(TEXT) for _ in range(MAX_LATE + 1)]
        for clause in clauses[:-1]:
            await judge.measure_late(clause, REPORT)
        waiting = asyncio.create_task(judge.measure_late(clauses[-1], REPORT))
        for _ in range(10):
            await asyncio.sleep(0)
        assert begun == clauses[:-1]
        waiting.cancel()
    assert ended == begun


async def test_clauses_that_may_be_continued_are_not_judged_late() -> None:
    async def measure(attempt: Attempt, report: dict[str, Any]) -> None:
        attempt.faults.append(Fault("words", 0.0, attempt.seconds))

    async with Judge(measure, "continued") as judge:
        _, report = await heard(Attempts(GOOD), sent_s=0.0, judge=judge)
    assert names(report) == ["words"]


@pytest.mark.parametrize(("sizes", "best"), [((30, 20, 25), 1), ((20, 25, 30), 0), ((30, 25, 20), 2)])
async def test_attempt_with_the_smallest_error_in_its_words_is_sent(sizes: tuple[int, ...], best: int) -> None:
    replies = [GOOD[: RATE * seconds].copy() for seconds in (3, 4, 5)]
    size_of = dict(zip((3.0, 4.0, 5.0), sizes, strict=True))
    for reply in replies:
        reply[-400:] = 0

    async def judge(attempt: Attempt, report: dict[str, Any]) -> None:
        attempt.faults.append(Fault("words", 0.0, attempt.seconds))
        attempt.error_size = size_of.pop(attempt.seconds)  # an attempt is judged only once
        attempt.report["size"] = attempt.error_size

    server = Attempts(*replies)
    pcm, report = await heard(server, attempts=3, sent_s=0.0, hold_s=6.0, judge=Judge(judge))
    np.testing.assert_array_equal(pcm, replies[best])
    assert (names(report), report["size"], report["redrawn"]) == (["words"], sizes[best], 2 if best == 2 else 3)


@pytest.mark.parametrize("hold_s", [-0.1, 60.1, float("nan"), float("inf")])
def test_hold_out_of_range_is_refused(hold_s: float) -> None:
    with pytest.raises(ValueError, match=r"hold_s: expected a number in \[0, 60\], got "):
        attempts_of("signals", 2, hold_s)


async def test_single_attempt_is_not_held_back() -> None:
    server = Attempts(SILENT)
    _, report = await heard(server, attempts=1)
    assert (names(report), report["redrawn"], server.redraws) == (["silence"], 0, [[]])


async def test_reply_without_sound_is_drawn_anew() -> None:
    server = Attempts(GOOD[:0], GOOD)
    pcm, report = await heard(server, sent_s=0.0)
    np.testing.assert_array_equal(pcm, GOOD)
    assert (names(report), server.redraws) == ([], [[], [0]])


async def test_faulty_clause_goes_on_if_the_server_is_full_after_samples_were_sent() -> None:
    server = Attempts(SILENT, GOOD, full=9)
    pcm, report = await heard(server, sent_s=0.0)
    np.testing.assert_array_equal(pcm, SILENT)
    assert (names(report), report["redrawn"], server.redraws) == (["silence"], 0, [[], [61]])


async def test_attempt_that_ends_before_the_sent_samples_ends_the_clause() -> None:
    """Such as one of another server, whose samples differ."""
    server = Attempts(SILENT, GOOD)
    begin = lambda frames: Attempts(GOOD[: 3 * RATE // 2]).begin([]) if frames else server.begin([])  # noqa: E731
    speak = checked(
        lambda options, _: begin(options.get("redraw_from")), {"seed": SEED}, 2, Lead(), once, None, profile
    )
    events = [event async for event in speak(TEXT)]
    assert events[-1].is_final
    num_samples = sum(len(event.pcm) for event in events if event.pcm is not None)
    assert num_samples == pytest.approx(2.3 * RATE, abs=0.1 * RATE)


@pytest.mark.parametrize("sizes", [(5_000, 800), (800, 5_000)])
@pytest.mark.parametrize("hold_s", [0.0, 60.0])
async def test_codes_are_those_of_the_samples(hold_s: float, sizes: tuple[int, int]) -> None:
    """In attempts that are divided in different ways, whose codes come before their samples."""

    async def events(pcm: np.ndarray, attempt: int) -> AsyncGenerator[SpeechEvent, None]:
        for start in range(0, len(pcm) + sizes[attempt], sizes[attempt]):
            codes = np.arange(start, min(len(pcm), start + sizes[attempt]))[None] + 1_000_000 * attempt
            begin = max(0, start - sizes[attempt])
            times = {"start_s": begin / RATE, "sample_rate": RATE}
            report = REPORT if start >= len(pcm) else None
            samples = pcm[begin:start] if start else None
            yield SpeechEvent(samples, "u", 0, "audio", codes=codes, is_final=bool(report), report=report, **times)

    def begin(options: Any, _: str) -> SpeechStream:
        is_anew = "redraw_from" in options
        return cast(SpeechStream, aclosing(events(GOOD if is_anew else SILENT, is_anew)))

    speech = checked(begin, {"seed": SEED}, 2, Lead(hold_s), once, None, profile)(TEXT)
    codes = np.concatenate([event.codes[0] async for event in speech if event.codes is not None])
    np.testing.assert_array_equal(codes % 1_000_000, np.arange(len(GOOD)))
    assert (codes[0] >= 1_000_000) == bool(hold_s), "all codes are those of the attempt that is sent"


@pytest.mark.parametrize(
    "options",
    [{"guidance": {"policy": "adaptive"}}, {"temperature": 0}, {"audio": {"temperature": 0.0}}],
    ids=["depends on the load", "greedy", "greedy audio"],
)
async def test_reply_that_cannot_be_drawn_anew_goes_on(options: Any) -> None:
    server = Attempts(SILENT, GOOD)
    options = {"seed": SEED} | options
    speak = checked(
        lambda drawn, _: server.begin(drawn.get("redraw_from", [])), options, 2, Lead(), once, None, profile
    )
    assert [event async for event in speak(TEXT)][-1].report["faults"]
    assert server.redraws == [[]]


async def test_speed_of_a_piece_of_the_text_is_not_measured() -> None:
    long_text = 20 * TEXT
    for num_pieces, faults in ((1, ["too_fast"]), (4, [])):
        attempt = Attempt(long_text)
        report = REPORT | {"num_pieces": num_pieces}
        attempt.add(SpeechEvent(GOOD, "u", 0, "audio", sample_rate=RATE, is_final=True, report=report))
        assert [fault.name for fault in attempt.faults] == faults


LETTERS = dict.fromkeys("abcdefghijklmnopqrstuvwxyz.", 0.05)
PACED = SignalLimits(pace=Pace({"": 0.2, " ": 0.1, **LETTERS, "th": -0.02}, least=0.9, most=1.2))
# One text; nine spaces around seven words and a mark; 25 letters and the mark; "th" twice.
EXPECTED_S = 0.2 + 9 * 0.1 + 26 * 0.05 - 2 * 0.02


@pytest.mark.parametrize(
    ("text", "bounds_s"),
    [
        ("The theatre opens for us at ten.", (0.9 * EXPECTED_S, 1.2 * EXPECTED_S)),
        ("The theatre opens for us at ten...", (0.9 * EXPECTED_S, 1.2 * EXPECTED_S)),
        ("The BBC opens for us at ten.", (0.02 * 43, 0.21 * 43)),
        ("The theatre opens for us at 10.", (0.02 * 51, 0.21 * 51)),
        ("Théâtre opens for us at ten.", (0.02 * 34, 0.21 * 34)),
        ("At ten.", (0.0, math.inf)),
    ],
)
def test_duration_of_a_text_is_that_of_its_letters(text: str, bounds_s: tuple[float, float]) -> None:
    assert PACED.durations_s(text) == pytest.approx(bounds_s)


@pytest.mark.parametrize(("sound_s", "faults"), [(2.0, ["too_fast"]), (2.2, []), (2.7, []), (3.0, ["too_slow"])])
def test_speech_of_another_duration_than_that_of_its_letters_is_faulty(sound_s: float, faults: list[str]) -> None:
    meter = SignalMeter("The theatre opens for us at ten.", RATE, PACED)
    speech = np.concatenate([GOOD[: round(sound_s * RATE)], np.zeros(RATE // 2, np.float32)])
    assert [fault.name for fault in [*meter.push(speech), *meter.end()]] == faults


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
