"""Many concurrent clients, each with one request after another, and verdicts on all answers."""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.chaos.clients import BAD, READERS, Answer, Verdict, judge, listen, read
from benchmarks.chaos.requests import Ask, Door

KINDS = {"speak": 10.0, "transcribe": 4.0, "gateway": 2.0, "upload": 0.2, "malformed": 2.0}  # relative frequencies
PAUSE_S = 0.5  # before a retry after an error
MAX_BAD = 20
Servers = Mapping[Door, str]  # addresses


@dataclass(slots=True)
class Outcomes:
    """Numbers of answers.

    Attributes:
        verdicts: Number of answers by kind of request and verdict.
        errors: Errors by message.
        bad: The first of the answers that must never occur.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, ask: Ask, reader: str, answer: Answer, verdict: Verdict) -> None:
        """Count one answer."""
        self.verdicts[f"{ask.kind}: {verdict}"] += 1
        if verdict is Verdict.ERROR:
            self.errors[f"{answer.error}: {answer.message}"[:160]] += 1
        if verdict in BAD and len(self.bad) < MAX_BAD:
            self.bad.append(
                f"{ask.name}, {reader}: {verdict}; {len(answer.samples())} samples, {answer.message[:200]!r}"
            )

    def num(self, *verdicts: Verdict) -> int:
        """Return the number of answers with one of these verdicts."""
        return sum(count for name, count in self.verdicts.items() if name.rpartition(": ")[2] in verdicts)


class Streams:
    """Closed loops of random requests, until they are stopped."""

    def __init__(
        self, servers: Servers, asks: Sequence[Ask], references: Mapping[str, Answer], seed: int, limit_s: float
    ):
        self.outcomes = Outcomes()
        self._servers, self._references, self._limit_s = servers, references, limit_s
        self._by_kind = {kind: [ask for ask in asks if ask.kind == kind] for kind in KINDS}
        self._seed, self._is_over = seed, False
        self._loops: list[asyncio.Task[None]] = []

    def start(self, number: int) -> None:
        """Start `number` loops."""
        self._loops = [asyncio.create_task(self._loop(random.Random(f"{self._seed} {each}"))) for each in range(number)]

    async def stop(self) -> None:
        """Complete all requests in flight and begin no other; raise the exception of a loop that failed."""
        self._is_over = True
        await asyncio.gather(*self._loops)

    async def is_right(self, ask: Ask) -> bool:
        """Send one request and return True if its answer is correct."""
        answer = await read(ask, self._servers[ask.door], listen, random.Random(0), self._limit_s)
        return judge(self._references[ask.name], answer) is Verdict.RIGHT

    async def _loop(self, draw: random.Random) -> None:
        while not self._is_over:
            (kind,) = draw.choices(list(KINDS), list(KINDS.values()))
            ask = draw.choice(self._by_kind[kind])
            (reader,) = draw.choices(list(READERS), list(READERS.values()))
            answer = await read(ask, self._servers[ask.door], reader, draw, self._limit_s)
            verdict = judge(self._references[ask.name], answer)
            self.outcomes.add(ask, reader.__name__, answer, verdict)
            if verdict not in (Verdict.RIGHT, Verdict.LEFT):
                await asyncio.sleep(PAUSE_S)


async def take_references(servers: Servers, asks: Sequence[Ask], limit_s: float) -> dict[str, Answer]:
    """Return the answer to each request alone; raise RuntimeError if it is wrong or differs when repeated."""
    references = {}
    for ask in asks:
        first, second = [await read(ask, servers[ask.door], listen, random.Random(0), limit_s) for _ in range(2)]
        is_refused = ask.kind == "malformed" or ask.name in ("upload long", "upload corrupt")
        if (first.error == "RequestRefused") != is_refused or judge(first, second) is not Verdict.RIGHT:
            answers = f"{first.error} {first.message}; then {second.error} {second.message}"
            raise RuntimeError(f"{ask.name}: no reference: {answers}")
        references[ask.name] = first
    return references
