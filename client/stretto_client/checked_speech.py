"""Speech that is measured while it arrives, and generated again with another seed if it is faulty.

Speech that has been sent is never changed, so a clause can only be generated again while all of it is held back. The
first clause is sent as it arrives. The beginning of a later one is held back for a share of the duration of the clauses
before it (`Lead`), of which the player has played only a part. This depends on the samples only, not on times, so that
the same text and seed give the same speech.
"""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Self

from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.signals import Fault, SignalMeter
from stretto_client.speech_stream import SpeakOptions, SpeechEvent, SpeechStream
from stretto_contract.finish_reasons import limit_of
from stretto_contract.speech_checks import CHECKS, MAX_ATTEMPTS, Check

LEAST_HELD_S = 1.0
MAX_HELD_S = 10.0


def attempts_of(check: Check, attempts: int) -> int:
    """Return the maximum number of attempts to speak a clause, or 0 if speech is not checked.

    Raises:
        ValueError: One of the arguments is invalid.
    """
    if check not in CHECKS:
        raise ValueError(f"check: expected one of {', '.join(CHECKS)}, got {check!r}")
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise ValueError(f"attempts: expected an integer in [1, {MAX_ATTEMPTS}], got {attempts!r}")
    return 0 if check == "off" else attempts


def seed_of(seed: int, attempt: int) -> int:
    """Return the seed of an attempt to speak a clause; the first one, number 0, has the request's seed."""
    if attempt == 0:
        return seed
    return int.from_bytes(blake2b(f"{seed} {attempt}".encode(), digest_size=8).digest()) >> 1


class Lead:
    """Duration of all clauses of a text that have been sent; the player has played only a part of it."""

    def __init__(self) -> None:
        self._sent_s = 0.0

    def add(self, seconds: float) -> None:
        """Add the duration of samples that have been sent."""
        self._sent_s += seconds

    def held_s(self, attempts: int) -> float:
        """Return the duration of the next clause that is held back, in seconds; 0 if it is too short for a fault.

        At twice real time, half of the sent speech is still unplayed, which is enough for all attempts.
        """
        held_s = min(MAX_HELD_S, self._sent_s / (1 + attempts))
        return held_s if held_s >= LEAST_HELD_S else 0.0


Begin = Callable[[int | None], SpeechStream]
"""Function of a seed that speaks the clause; None for the request's seed."""


@dataclass(frozen=True)
class Redrawn:
    """Attempts to speak a clause that were given up: their number, and the duration of their speech in seconds."""

    number: int = 0
    seconds: float = 0.0


class Faults:
    """Faults of an attempt to speak a clause.

    Args:
        text: The clause.
        redrawn: Earlier attempts, which were given up.

    Attributes:
        faults: Faults of the events so far, in the order in which they were found.
    """

    def __init__(self, text: str, redrawn: Redrawn):
        self._text = text
        self._redrawn = redrawn
        self._meter: SignalMeter | None = None
        self.faults = list[Fault]()

    def marked(self, event: SpeechEvent) -> SpeechEvent:
        """Measure the next event, and return it; the last one with the faults and the number of attempts before."""
        if event.pcm is not None:
            self._meter = self._meter or SignalMeter(self._text, event.sample_rate)
            self.faults += self._meter.push(event.pcm)
        if not event.is_final or event.report is None:
            return event
        meter = self._meter or SignalMeter(self._text, event.sample_rate)
        self.faults += meter.end(limit_of(event.report), event.report.get("num_pieces", 1) == 1)
        listed = [{"fault": fault.name, "start_s": fault.start_s} for fault in self.faults]
        checked = {"faults": listed, "redrawn": self._redrawn.number, "redrawn_s": self._redrawn.seconds}
        return replace(event, report=event.report | checked)


class MeasuredSpeech:
    """Stream of the events of a text; the report of the last event lists the faults."""

    def __init__(self, stream: SpeechStream, text: str):
        self._stream = stream
        self._faults = Faults(text, Redrawn())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SpeechEvent:
        return self._faults.marked(await anext(self._stream))

    def cancel(self) -> None:
        """Cancel the utterance; a pending or later read raises RequestCancelled."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """Cancel the utterance and end the iteration."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def checked(speak: Callable[..., SpeechStream], options: SpeakOptions, attempts: int) -> Callable[..., "CheckedSpeech"]:
    """Return a function that speaks a clause of a text and measures it.

    Args:
        speak: Function of options, the clause and further arguments, which speaks it.
        options: Options of the whole text.
        attempts: Maximum number of attempts for a clause; more than one need a seed in the options.
    """
    lead = Lead()

    def speak_clause(text: str, **arguments: Any) -> CheckedSpeech:
        def begin(seed: int | None) -> SpeechStream:
            seeded: SpeakOptions = options if seed is None else {**options, "seed": seed}
            return speak(seeded, text, **arguments)

        return CheckedSpeech(begin, text, options.get("seed"), lead, attempts)

    return speak_clause


class CheckedSpeech(ProducedSpeech):
    """Stream of the events of a clause, with the interface of SpeechStream. The report lists its faults.

    Args:
        begin: Function that speaks the clause.
        text: The clause.
        seed: Seed of the first attempt; None to make only one.
        lead: Speech before the clause.
        attempts: Maximum number of attempts.
    """

    def __init__(self, begin: Begin, text: str, seed: int | None, lead: Lead, attempts: int):
        clause = _Clause(begin, text, lead)
        super().__init__(partial(clause.speak, seed, attempts))


class _Clause:
    """Clause that the task of a CheckedSpeech speaks. It does not refer to the stream, whose deletion ends the task."""

    def __init__(self, begin: Begin, text: str, lead: Lead):
        self._begin = begin
        self._text = text
        self._lead = lead

    async def speak(self, seed: int | None, attempts: int, items: Items) -> None:
        """Put the events of the first attempt without a fault into `items`; if all have one, those of the last one."""
        held_s = self._lead.held_s(attempts)
        redrawn = Redrawn()
        if seed is not None and held_s:
            for number in range(attempts - 1):
                given_up_s = await self._try(seed_of(seed, number), held_s, redrawn, items)
                if given_up_s is None:
                    return
                redrawn = Redrawn(redrawn.number + 1, redrawn.seconds + given_up_s)
        await self._try(None if seed is None else seed_of(seed, redrawn.number), 0.0, redrawn, items)

    async def _try(self, seed: int | None, held_s: float, redrawn: Redrawn, items: Items) -> float | None:
        """Put the events of an attempt into `items`, or give it up and return the duration of its speech, in seconds.

        Args:
            held_s: Duration that is held back; 0 if the attempt is not given up. Faults that are found later are only
                reported.
            redrawn: Earlier attempts, which were given up.
        """
        held = list[SpeechEvent]()
        attempt = Faults(self._text, redrawn)
        async with aclosing(self._begin(seed)) as events:
            async for event in events:
                held.append(attempt.marked(event))
                if held_s and attempt.faults and attempt.faults[0].found_s <= held_s:
                    return event.start_s + event.duration_s
                if event.is_final or event.start_s + event.duration_s > held_s:
                    held_s = 0.0
                    await self._release(held, items)
        return None

    async def _release(self, held: list[SpeechEvent], items: Items) -> None:
        for event in held:
            self._lead.add(event.duration_s)
            await items.put(event)
        held.clear()
