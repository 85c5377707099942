"""Speech that is measured while it arrives. From a fault on, it is generated again.

A part of the measured speech is held back (`Lead`). If it has a fault, the server repeats the reply up to the samples
that may have been sent, and samples the rest with new noise (option `redraw_from`). Decisions depend only on the
samples, not on times or on the sizes of events, so that the same text and seed give the same speech.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from math import ceil, inf
from typing import Any, Self

from numpy.typing import NDArray

from stretto_client.errors import ClientError
from stretto_client.model_profile import FetchProfile, ModelProfile, known_profile
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.sent_speech import SentSpeech
from stretto_client.signals import BLOCK_S, Fault, SignalMeter
from stretto_client.speech_stream import SpeakOptions, SpeechEvent, SpeechStream
from stretto_client.tries import Tries, events_in_turn, once
from stretto_contract.finish_reasons import limit_of
from stretto_contract.joins import Join
from stretto_contract.speech_checks import CHECKS, FAULTS, MAX_ATTEMPTS, MAX_HOLD_S, USUAL_SIGNALS, Check, SignalLimits

FREE_S = 1.0  # first speech of a text, which is not held back without `hold_s`
SHARE = 3  # one part in three of later speech is held back
MAX_HELD_S = 10.0  # unless `hold_s` is longer
MAX_HELD_BYTES = 8 << 20  # maximum size of the samples of a clause that are held back
MAX_JUDGED_S = 40.0  # longest speech that is kept for a judge, also after it has been sent
MAX_LATE = 2  # clauses of a text that are judged while the next one is spoken


def check_one_of(name: str, choices: Sequence[str], value: str) -> None:
    """Raise ValueError unless the argument called `name` has one of the `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def attempts_of(check: Check, attempts: int, hold_s: float = 0.0) -> int:
    """Return the maximum number of attempts for a clause, 0 without checks; raise ValueError for bad arguments."""
    check_one_of("check", CHECKS, check)
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise ValueError(f"attempts: expected an integer in [1, {MAX_ATTEMPTS}], got {attempts!r}")
    if not 0 <= hold_s <= MAX_HOLD_S:
        raise ValueError(f"hold_s: expected a number in [0, {MAX_HOLD_S:g}], got {hold_s!r}")
    return 0 if check == "off" else attempts


class Lead:
    """Total duration of a text's sent clauses; the player has played only a part of it.

    Args:
        hold_s: Minimum duration of a clause that is held back, in seconds.
    """

    def __init__(self, hold_s: float = 0.0) -> None:
        self._hold_s = hold_s
        self._num_samples = 0  # an exact number, whereas a sum of durations depends on how the samples are divided

    def add(self, num_samples: int) -> None:
        """Add the samples of a clause that has been sent."""
        self._num_samples += num_samples

    def num_free(self, num_measured: int, sample_rate: int, sample_bytes: int) -> int:
        """Return how many samples of the next clause may be sent once `num_measured` have been measured.

        A player does not wait for the other samples if speech is generated at 1.5 times real time or faster.
        """
        free = round(FREE_S * sample_rate)
        share = max(0, self._num_samples + num_measured - free) // SHARE
        held = max(round(self._hold_s * sample_rate), min(share, round(MAX_HELD_S * sample_rate)))
        at_once = 0 if self._hold_s else free - round(BLOCK_S * sample_rate) - self._num_samples
        return max(0, at_once, num_measured - min(held, MAX_HELD_BYTES // sample_bytes))


Frames = tuple[int, ...]
"""Frames at which sampling with new noise begins (`redraw_from`)."""

Begin = Callable[[Frames], SpeechStream]
"""Function that speaks the clause with new noise from each of these frames on."""


def num_equal_frames(one: Frames, other: Frames) -> float:
    """Return the number of equal frames at the beginning of two attempts; infinity if all are equal."""
    return next((min(pair) for pair in zip_longest(one, other, fillvalue=inf) if pair[0] != pair[1]), inf)


class Attempt:
    """Attempt to speak a clause, whose events are measured as they arrive.

    Attributes:
        held: Events, or the parts of them, that have not been sent.
        chunks: Samples of the first MAX_JUDGED_S seconds, if a judge needs them (`is_judged`).
        report: Further entries of the last event's report.
        sent_report: Report of the last event, once it has been sent; a late judge adds to it.
        error_size: Size of the largest error in its words; 0 if they are not checked.
    """

    def __init__(self, text: str, limits: SignalLimits = USUAL_SIGNALS, is_judged: bool = False, frames: Frames = ()):
        self.text = text
        self.frames = frames
        self._limits = limits
        self._is_judged = is_judged
        self.held = list[SpeechEvent]()
        self.chunks = list[NDArray[Any]]()
        self.error_size = 0
        self.faults = list[Fault]()
        self.report = dict[str, Any]()
        self.sent_report = dict[str, Any]()
        self.num_samples = 0
        self.sample_rate = 1
        self.sample_bytes = 1
        self._meter: SignalMeter | None = None

    @property
    def seconds(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def num_measured(self) -> int:
        return 0 if self._meter is None else self._meter.num_measured

    @property
    def num_found(self) -> int:
        """Number of samples after which the first fault was found."""
        return round(self.faults[0].found_s * self.sample_rate)

    @property
    def badness(self) -> tuple[int, int, float]:
        """Sort key of a faulty attempt: how bad its first fault is, and how early it was found. The best is lowest.

        Later faults do not count, because an attempt may be given up at the first one.
        """
        return FAULTS.index(self.faults[0].name), self.error_size, -self.faults[0].found_s

    def add(self, event: SpeechEvent) -> None:
        """Measure the next event."""
        if event.pcm is not None:
            self._meter = self._meter or SignalMeter(self.text, event.sample_rate, self._limits)
            self.faults += self._meter.push(event.pcm)
            self.sample_rate = event.sample_rate
            self.sample_bytes = event.pcm.itemsize
            self.num_samples += len(event.pcm)
            if self._is_judged and self.seconds <= MAX_JUDGED_S:
                self.chunks.append(event.pcm)
        if event.is_final and event.report is not None:
            meter = self._meter or SignalMeter(self.text, event.sample_rate, self._limits)
            self.faults += meter.end(limit_of(event.report), event.report.get("num_pieces", 1) == 1)

    def repeat(self, earlier: "Attempt") -> None:
        """Copy the judge's faults and report from an earlier attempt with the same speech."""
        self.faults += [fault for fault in earlier.faults if fault not in self.faults]
        self.report |= earlier.report

    def checked_report(self) -> dict[str, Any]:
        """Return the entries that the check adds to the last event's report."""
        return {"faults": [{"fault": fault.name, "start_s": fault.start_s} for fault in self.faults]} | self.report


Measure = Callable[[Attempt, dict[str, Any]], Awaitable[None]]
"""Function that measures a complete attempt and adds to its faults and report."""


class Judge:
    """Judge that measures the complete attempts of a text.

    Within `async with`, clauses are judged late: after they have been sent, while the next ones are spoken. `finish`
    waits for the results, and leaving the block cancels the rest.

    Args:
        join: If it is `continued`, no clause is judged late, because only speech without a fault is continued.
    """

    def __init__(self, measure: Measure, join: Join = "independent"):
        self.measure = measure
        self._join = join
        self.is_late = False
        self._late = deque[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        self.is_late = self._join == "independent"
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def measure_late(self, attempt: Attempt, report: dict[str, Any]) -> None:
        """Begin to judge an attempt that has been sent, as soon as fewer than MAX_LATE are being judged."""
        while len(self._late) >= MAX_LATE:
            await self._late.popleft()
        self._late.append(asyncio.create_task(self._measure_sent(attempt, report)))

    async def finish(self) -> None:
        """Wait until all reports are complete."""
        while self._late:
            await self._late.popleft()

    async def _measure_sent(self, attempt: Attempt, report: dict[str, Any]) -> None:
        await self.measure(attempt, report)
        attempt.sent_report |= attempt.checked_report()


def is_adaptive(options: SpeakOptions) -> bool:
    """Return True if the guidance depends on the server's load, so that a repeated reply may differ."""
    guidance: Any = options.get("guidance")
    return isinstance(guidance, Mapping) and guidance.get("policy") == "adaptive"


def is_greedy(options: SpeakOptions) -> bool:
    """Return True if the most probable codes are always chosen, so that a new attempt would give the same reply."""
    audio: Any = options.get("audio")
    temperatures = [options.get("temperature")]
    if isinstance(audio, Mapping):
        temperatures.append(audio.get("temperature"))
    return 0 in temperatures


def checked(
    speak: Callable[..., SpeechStream],
    options: SpeakOptions,
    attempts: int,
    lead: Lead,
    tries: Tries,
    judge: Judge | None = None,
    profile: FetchProfile | None = None,
    redraws: Sequence[Sequence[int]] | None = None,
) -> Callable[..., SpeechStream | ProducedSpeech]:
    """Return a function that speaks a clause of a text and measures it. The report of the last event lists the faults.

    The speech is that of the first attempt without a fault, or of the best one. When an attempt is abandoned, an event
    without samples reports the duration of its speech.

    Args:
        speak: Function that speaks a clause, given options, the clause and further arguments.
        attempts: Maximum number of attempts for a clause; more than one need a seed in the options. 0 not to measure.
        tries: Tries of each attempt after the first one, while the server is full.
        profile: Function that returns the profile with the limits of the samples; None for the usual ones.
        redraws: `redraw_from` of each clause of an earlier speech, to repeat it unmeasured; None for new speech.
    """
    if redraws is not None:
        return repeated(speak, options, redraws)
    if not attempts:
        return partial(speak, options)

    def speak_clause(text: str, **arguments: Any) -> ProducedSpeech:
        def begin(frames: Frames) -> SpeechStream:
            drawn: SpeakOptions = {**options, "redraw_from": [*frames]} if frames else options
            return speak(drawn, text, **arguments)

        is_repeatable = options.get("seed") is not None and not is_adaptive(options)
        can_differ = "redraw_from" not in options and not is_greedy(options)
        can_redraw = attempts > 1 and is_repeatable and can_differ
        clause = _Clause(begin, text, attempts if can_redraw else 1, lead, tries, judge, profile)
        return ProducedSpeech(clause.speak)

    return speak_clause


def repeated(
    speak: Callable[..., SpeechStream], options: SpeakOptions, redraws: Sequence[Sequence[int]]
) -> Callable[..., ProducedSpeech]:
    """Return a function that repeats the clauses of an earlier speech unmeasured; `redraws` is as for `checked`."""
    left = deque(redraws)

    def speak_clause(text: str, **arguments: Any) -> ProducedSpeech:
        frames = left[0] if left else ()
        drawn: SpeakOptions = {**options, "redraw_from": [*frames]} if frames else options

        async def produce(items: Items) -> None:
            async with speak(drawn, text, **arguments) as stream:
                async for event in stream:
                    if event.is_final and left:  # a clause that is too long is refused before, and halved
                        left.popleft()
                    await items.put(event)

        return ProducedSpeech(produce)

    return speak_clause


@dataclass(frozen=True)
class _Stream:
    """Events of an attempt. If it repeats an earlier one (`repeated`), its faults are only reported."""

    attempt: Attempt
    repeated: Attempt | None
    first: SpeechEvent | None
    events: AsyncGenerator[SpeechEvent, None]

    async def __aiter__(self) -> AsyncIterator[SpeechEvent]:
        if self.first is not None:
            yield self.first
        async for event in self.events:
            yield event


class _Clause:
    """Clause of a text that is being spoken, with the arguments of `checked`."""

    def __init__(
        self,
        begin: Begin,
        text: str,
        attempts: int,
        lead: Lead,
        tries: Tries,
        judge: Judge | None,
        profile: FetchProfile | None,
    ):
        self._begin = begin
        self._text = text
        self._attempts = attempts
        self._lead = lead
        self._tries = tries
        self._judge = judge
        self._fetch_profile = profile
        self._profile: ModelProfile | None = None
        self._given_up = list[Attempt]()
        self._given_up_at = 0  # samples that may have been sent
        self._sent = SentSpeech()

    async def speak(self, items: Items) -> None:
        """Put the events of the clause into the queue `items`."""
        if self._fetch_profile is not None:
            self._profile = await known_profile(self._fetch_profile)
        stream: _Stream | None = await self._begun((), once)
        while stream is not None:
            async with aclosing(stream.events):
                stream = await self._try(stream, items)

    async def _begun(self, frames: Frames, tries: Tries, repeated: Attempt | None = None) -> "_Stream":
        """Start an attempt, and return its stream once the first event has arrived."""
        limits = USUAL_SIGNALS if self._profile is None else self._profile.signals
        attempt = Attempt(self._text, limits, self._judge is not None, frames)
        events = events_in_turn(partial(self._begin, frames), tries)
        return _Stream(attempt, repeated, await anext(events, None), events)

    async def _successor(self, attempt: Attempt, event: SpeechEvent, items: Items) -> "_Stream | None":
        """Abandon an attempt, whose last event is `event`, and return the stream of the next one.

        If speech has been sent, the next attempt does not wait while the server is full and, if it fails, None is
        returned, so that the faulty speech continues.
        """
        frames: Frames = (*attempt.frames, self._first_new_frame(attempt))
        best: Attempt | None = None
        if len(self._given_up) == self._attempts - 1:
            same = [*self._with_the_same_beginning(attempt), attempt]
            best = min(same, key=lambda earlier: earlier.badness)
            frames = best.frames
        if not self._sent.num_samples:
            await self._give_up(attempt, event, items)
            return await self._begun(frames, self._tries, best)
        try:
            stream = await self._begun(frames, once, best)
        except ClientError:
            return None
        await self._give_up(attempt, event, items)
        return stream

    async def _try(self, stream: "_Stream", items: Items) -> "_Stream | None":
        """Put the events of an attempt into `items`, or abandon it and return the stream of the next attempt.

        The last attempt is only given up if an earlier one is better.
        """
        attempt = stream.attempt
        repeated = stream.repeated
        can_redraw = self._attempts > 1 and self._profile is not None and self._profile.lookahead_frames >= 0
        is_held = can_redraw and repeated is None
        self._sent.begin_attempt()
        async for event in stream:
            attempt.add(event)
            attempt.held += self._sent.rest(event)
            if event.is_final and repeated is not None and repeated.report:
                attempt.repeat(repeated)
            elif event.is_final and not (is_held and attempt.faults and self._is_given_up(attempt)):
                is_held = await self._judge_whole(attempt, is_held, items)
            if is_held and attempt.faults:
                successor = await self._successor(attempt, event, items) if self._is_given_up(attempt) else None
                if successor is not None:
                    return successor
                is_held = False
            is_whole = event.is_final or not is_held
            await self._release(attempt, inf if is_whole else self._num_free(attempt), items)
            if not self._sent.num_events:  # shows the reader that the request was admitted
                await items.put(self._sent.add(event.without_speech()))
        return None

    def _num_free(self, attempt: Attempt) -> int:
        """Return the number of an attempt's first samples that may be sent: those before its first fault, or so far."""
        if attempt.faults and not attempt.num_samples:
            return self._given_up_at
        num_measured = attempt.num_found if attempt.faults else attempt.num_measured
        return max(self._given_up_at, self._lead.num_free(num_measured, attempt.sample_rate, attempt.sample_bytes))

    def _first_new_frame(self, attempt: Attempt) -> int:
        """Return the first frame that a new attempt may change: no sample that may have been sent depends on it."""
        assert self._profile is not None
        num_free = self._num_free(attempt)
        if not num_free:
            return 0
        return ceil(num_free * self._profile.frame_rate / attempt.sample_rate) + self._profile.lookahead_frames

    def _with_the_same_beginning(self, attempt: Attempt) -> list[Attempt]:
        """Return the abandoned attempts that begin with the same samples, up to those that may have been sent."""
        first = self._first_new_frame(attempt)
        return [earlier for earlier in self._given_up if num_equal_frames(earlier.frames, attempt.frames) >= first]

    def _is_given_up(self, attempt: Attempt) -> bool:
        """Return True to abandon a faulty attempt, because another may be right or an earlier one is better."""
        if len(self._given_up) < self._attempts - 1:
            assert self._profile is not None
            first = self._first_new_frame(attempt)
            return first == 0 or first < attempt.faults[0].found_s * self._profile.frame_rate
        return any(earlier.badness < attempt.badness for earlier in self._with_the_same_beginning(attempt))

    async def _give_up(self, attempt: Attempt, event: SpeechEvent, items: Items) -> None:
        self._given_up_at = self._num_free(attempt)
        attempt.held.clear()
        attempt.chunks.clear()
        self._given_up.append(attempt)
        start_s = self._sent.num_samples / attempt.sample_rate
        await items.put(self._sent.add(replace(event.without_speech(), start_s=start_s, redrawn_s=attempt.seconds)))

    async def _judge_whole(self, attempt: Attempt, is_held: bool, items: Items) -> bool:
        """Let the judge measure an attempt; return True if all of it is held back. Otherwise, first send the rest."""
        last = attempt.held[-1]
        if self._judge is None or last.report is None:
            return is_held
        is_held = is_held and not self._num_free(attempt)
        if not is_held:
            attempt.held[-1] = replace(last, is_final=False, report=None)
            await self._release(attempt, inf, items)
            end = replace(last.without_speech(), start_s=last.start_s + last.duration_s, is_final=True)
            attempt.held.append(replace(end, report=last.report))
        if not is_held and self._judge.is_late:
            await self._judge.measure_late(attempt, last.report)
        else:
            await self._judge.measure(attempt, last.report)
        return is_held

    async def _release(self, attempt: Attempt, num_free: float, items: Items) -> None:
        """Send the events of an attempt up to sample `num_free` of the clause."""
        while attempt.held:
            event, later = self._sent.split(attempt.held.pop(0), num_free)
            if later is not None:
                attempt.held.insert(0, later)
            if event is None:
                return
            await items.put(self._marked(self._sent.add(event), attempt))

    def _marked(self, event: SpeechEvent, attempt: Attempt) -> SpeechEvent:
        """Return an event; if it is the last one, add the faults and the number of earlier attempts."""
        if not event.is_final or event.report is None:
            return event
        self._lead.add(attempt.num_samples)
        redrawn_s = sum(earlier.seconds for earlier in self._given_up)
        redrawn: dict[str, Any] = {"redrawn": len(self._given_up), "redrawn_s": redrawn_s}
        redrawn["redraw_from"] = [[*attempt.frames]]
        attempt.sent_report |= event.report | attempt.checked_report() | redrawn
        return replace(event, report=attempt.sent_report)
