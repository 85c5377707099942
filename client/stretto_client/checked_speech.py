"""Speech that is measured while it arrives, and generated again with another seed if it is faulty.

Speech that has been sent is never changed, so a clause can only be generated again while all of it is held back. The
beginning of a clause is held back for `hold_s` seconds or, if that is longer, for a share of the duration of the
clauses before it (`Lead`), of which the player has played only a part. This depends on the samples only, not on times
or on their division into events, so that the same text and seed give the same speech.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any, Self

from numpy.typing import NDArray

from stretto_client.model_profile import FetchProfile, signal_limits
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.signals import Fault, SignalMeter
from stretto_client.speech_stream import SpeakOptions, SpeechEvent, SpeechStream
from stretto_client.tries import Tries, events_in_turn, once
from stretto_contract.finish_reasons import limit_of
from stretto_contract.joins import Join
from stretto_contract.speech_checks import CHECKS, FAULTS, MAX_ATTEMPTS, MAX_HOLD_S, USUAL_SIGNALS, Check, SignalLimits

LEAST_HELD_S = 1.0
MAX_HELD_S = 10.0  # of a clause after others, beyond `hold_s`
MAX_HELD_BYTES = 8 << 20  # of samples of a clause
MAX_JUDGED_S = 40.0  # longest speech that is kept for a judge, also after it has been sent
MAX_LATE = 2  # clauses of a text that are judged while the next one is spoken


def check_one_of(name: str, choices: Sequence[str], value: str) -> None:
    """Raise ValueError unless the argument called `name` has one of the `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def attempts_of(check: Check, attempts: int, hold_s: float = 0.0) -> int:
    """Return the maximum number of attempts to speak a clause, or 0 if speech is not checked.

    Raises:
        ValueError: One of the arguments is invalid.
    """
    check_one_of("check", CHECKS, check)
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise ValueError(f"attempts: expected an integer in [1, {MAX_ATTEMPTS}], got {attempts!r}")
    if not 0 <= hold_s <= MAX_HOLD_S:
        raise ValueError(f"hold_s: expected a number in [0, {MAX_HOLD_S:g}], got {hold_s!r}")
    return 0 if check == "off" else attempts


def seed_of(seed: int, attempt: int) -> int:
    """Return the seed of an attempt to speak a clause; the first one, number 0, has the request's seed."""
    if attempt == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed} {attempt}".encode(), digest_size=8).digest()) >> 1


class Lead:
    """Duration of all clauses of a text that have been sent; the player has played only a part of it.

    Args:
        hold_s: Least duration of a clause that is held back, in seconds.
    """

    def __init__(self, hold_s: float = 0.0) -> None:
        self._hold_s = hold_s
        self._num_samples = 0  # an exact number, whereas a sum of durations depends on how the samples are divided
        self._sample_rate = 1

    def add(self, num_samples: int, sample_rate: int) -> None:
        """Add samples that have been sent."""
        self._num_samples += num_samples
        self._sample_rate = sample_rate

    def held_s(self, attempts: int) -> float:
        """Return how many seconds of the next clause are held back; 0 for none.

        At twice real time, half of the sent speech is still unplayed, which is enough for all attempts.
        """
        if attempts == 1:
            return 0.0
        lead_s = self._num_samples // (1 + attempts) / self._sample_rate
        return max(self._hold_s, min(MAX_HELD_S, lead_s) if lead_s >= LEAST_HELD_S else 0.0)


Begin = Callable[[int | None], SpeechStream]
"""Function of a seed that speaks the clause; None for the request's seed."""


class Attempt:
    """Attempt to speak a clause, whose events are measured as they arrive.

    Args:
        text: The clause.
        limits: Limits beyond which its samples are faulty.
        is_judged: True to keep its samples for a judge.

    Attributes:
        held: Events that have not been sent.
        chunks: Samples of the first MAX_JUDGED_S seconds, for a judge.
        faults: Faults of the events so far, in the order in which they were found.
        report: Further entries of the last event's report.
        sent_report: Report of the last event, once it has been sent; a late judge adds to it.
        error_size: Size of the largest error in its words; 0 if they are not checked.
        sample_rate: Sample rate in Hz.
    """

    def __init__(self, text: str, limits: SignalLimits = USUAL_SIGNALS, is_judged: bool = False):
        self.text = text
        self._limits = limits
        self._is_judged = is_judged
        self.held = list[SpeechEvent]()
        self.chunks = list[NDArray[Any]]()
        self.error_size = 0
        self.faults = list[Fault]()
        self.report = dict[str, Any]()
        self.sent_report = dict[str, Any]()
        self._num_samples = 0
        self.sample_rate = 1
        self._sample_bytes = 1
        self._meter: SignalMeter | None = None

    @property
    def seconds(self) -> float:
        """Duration of the samples so far."""
        return self._num_samples / self.sample_rate

    @property
    def most_held_s(self) -> float:
        """Duration of MAX_HELD_BYTES of samples."""
        return MAX_HELD_BYTES / self._sample_bytes / self.sample_rate

    @property
    def badness(self) -> tuple[int, int, float]:
        """Rank of a faulty attempt, the least for the best one: how bad its first fault is, and how early it is found.

        Later faults do not count, because an attempt may be given up at the first one.
        """
        return FAULTS.index(self.faults[0].name), self.error_size, -self.faults[0].found_s

    def add(self, event: SpeechEvent) -> None:
        """Measure the next event, and hold it back."""
        self.held.append(event)
        if event.pcm is not None:
            self._meter = self._meter or SignalMeter(self.text, event.sample_rate, self._limits)
            self.faults += self._meter.push(event.pcm)
            self.sample_rate = event.sample_rate
            self._sample_bytes = event.pcm.itemsize
            self._num_samples += len(event.pcm)
            if self._is_judged and self.seconds <= MAX_JUDGED_S:
                self.chunks.append(event.pcm)
        if event.is_final and event.report is not None:
            meter = self._meter or SignalMeter(self.text, event.sample_rate, self._limits)
            self.faults += meter.end(limit_of(event.report), event.report.get("num_pieces", 1) == 1)

    def repeat(self, earlier: "Attempt") -> None:
        """Add the results of the judge of an earlier attempt with the same seed, and so with the same speech."""
        self.faults += [fault for fault in earlier.faults if fault not in self.faults]
        self.report |= earlier.report

    def is_faulty_within(self, seconds: float) -> bool:
        """Return True if a fault is found in the first `seconds` of the speech; False for 0 s."""
        return bool(self.faults) and self.faults[0].found_s <= seconds > 0

    def checked_report(self) -> dict[str, Any]:
        """Return the entries that the check adds to the last event's report."""
        return {"faults": [{"fault": fault.name, "start_s": fault.start_s} for fault in self.faults]} | self.report


Measure = Callable[[Attempt, dict[str, Any]], Awaitable[None]]
"""Function of a whole attempt and its report, which may add to the attempt's faults and report."""


class Judge:
    """Judge of the whole attempts of a text.

    Within `async with`, clauses that have been sent are judged late: while the next ones are spoken. Judging ends with
    it, and `finish` waits for the results.

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


def checked(
    speak: Callable[..., SpeechStream],
    options: SpeakOptions,
    attempts: int,
    lead: Lead,
    tries: Tries,
    judge: Judge | None = None,
    profile: FetchProfile | None = None,
) -> Callable[..., SpeechStream | ProducedSpeech]:
    """Return a function that speaks a clause of a text and measures it. The last event's report lists the faults.

    The speech is that of the first attempt without a fault, or of the best one. As soon as an attempt is given up, an
    event without samples reports the duration of its speech.

    Args:
        speak: Function of options, the clause and further arguments, which speaks it.
        options: Options of the whole text.
        attempts: Maximum number of attempts for a clause; more than one need a seed in the options. 0 not to measure.
        lead: Speech before the clause.
        tries: Tries of each attempt after the first one, while the server is full.
        judge: Further measure of whole attempts; None for none.
        profile: Function that returns the profile with the limits of the samples; None for the usual ones.
    """
    if not attempts:
        return partial(speak, options)

    def speak_clause(text: str, **arguments: Any) -> ProducedSpeech:
        def begin(seed: int | None) -> SpeechStream:
            seeded: SpeakOptions = options if seed is None else {**options, "seed": seed}
            return speak(seeded, text, **arguments)

        clause = _Clause(begin, text, options.get("seed"), attempts, lead, tries, judge, profile)
        return ProducedSpeech(clause.speak)

    return speak_clause


class _Clause:
    """Clause of a text, with the arguments of `checked`."""

    def __init__(
        self,
        begin: Begin,
        text: str,
        seed: int | None,
        attempts: int,
        lead: Lead,
        tries: Tries,
        judge: Judge | None,
        profile: FetchProfile | None,
    ):
        self._begin = begin
        self._text = text
        self._seed = seed
        self._attempts = attempts
        self._lead = lead
        self._tries = tries
        self._judge = judge
        self._profile = profile
        self._given_up = list[Attempt]()

    async def speak(self, items: Items) -> None:
        """Put the events of the clause into `items`."""
        held_s = 0.0 if self._seed is None else self._lead.held_s(self._attempts)
        for number in range(self._attempts if held_s else 1):
            if await self._try(number, held_s, items):
                return
        best = min(range(len(self._given_up)), key=lambda number: self._given_up[number].badness)
        await self._try(best, 0.0, items)

    async def _try(self, number: int, held_s: float, items: Items) -> bool:
        """Put the events of an attempt into `items`, and return True, or give it up and return False.

        The last attempt is only given up if an earlier one is better.

        Args:
            held_s: Duration that is held back. Faults that are found later are only reported.
        """
        limits = USUAL_SIGNALS if self._profile is None else await signal_limits(self._profile)
        attempt = Attempt(self._text, limits, is_judged=self._judge is not None)
        begin = partial(self._begin, None if self._seed is None else seed_of(self._seed, number))
        async with aclosing(events_in_turn(begin, self._tries if self._given_up else once)) as events:
            async for event in events:
                attempt.add(event)
                held_s = min(held_s, attempt.most_held_s)
                if event.is_final and number < len(self._given_up) and self._given_up[number].report:
                    attempt.repeat(self._given_up[number])
                elif event.is_final and not (attempt.is_faulty_within(held_s) and self._is_worse(attempt)):
                    await self._judge_whole(attempt, event, held_s, items)
                if attempt.is_faulty_within(held_s):
                    if self._is_worse(attempt):
                        await self._give_up(attempt, event, items)
                        return False
                    held_s = 0.0
                if event.is_final or not held_s or attempt.seconds > held_s:
                    held_s = 0.0
                    await self._release(attempt, items)
                elif len(attempt.held) == 1 and not self._given_up:  # tell the reader that the request has a place
                    await items.put(event.without_speech())
        return True

    async def _judge_whole(self, attempt: Attempt, event: SpeechEvent, held_s: float, items: Items) -> None:
        """Let the judge measure an attempt. If the last samples are not held back, they are sent before."""
        if self._judge is None or event.report is None:
            return
        is_sent = attempt.seconds > held_s
        if is_sent:
            attempt.held[-1] = replace(event, is_final=False, report=None)
            await self._release(attempt, items)
            end_s = event.start_s + event.duration_s
            last = replace(event.without_speech(), index=event.index + 1, start_s=end_s, is_final=True)
            attempt.held.append(replace(last, report=event.report))
        if is_sent and self._judge.is_late:
            await self._judge.measure_late(attempt, event.report)
        else:
            await self._judge.measure(attempt, event.report)

    def _is_worse(self, attempt: Attempt) -> bool:
        """Return True to give up a faulty attempt: another one is left, or an earlier one is better."""
        if len(self._given_up) < self._attempts - 1:
            return True
        return any(earlier.badness < attempt.badness for earlier in self._given_up)

    async def _give_up(self, attempt: Attempt, event: SpeechEvent, items: Items) -> None:
        attempt.held.clear()
        attempt.chunks.clear()
        self._given_up.append(attempt)
        await items.put(replace(event.without_speech(), start_s=0.0, redrawn_s=attempt.seconds))

    async def _release(self, attempt: Attempt, items: Items) -> None:
        for event in attempt.held:
            if event.pcm is not None:
                self._lead.add(len(event.pcm), event.sample_rate)
            await items.put(self._marked(event, attempt))
        attempt.held.clear()

    def _marked(self, event: SpeechEvent, attempt: Attempt) -> SpeechEvent:
        """Return an event, the last one with the faults, the number of attempts before, and the request's seed."""
        if not event.is_final or event.report is None:
            return event
        redrawn_s = sum(earlier.seconds for earlier in self._given_up)
        redrawn = {"redrawn": len(self._given_up), "redrawn_s": redrawn_s}
        seed = {"seed": self._seed} if self._given_up else {}
        attempt.sent_report |= event.report | attempt.checked_report() | redrawn | seed
        return replace(event, report=attempt.sent_report)
