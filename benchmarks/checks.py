"""Measure the checks of speech with faults at known places, and the cost of the checks.

    python -m benchmarks.checks found --folder DIR        # found, missed and false alarms of each signal
    python -m benchmarks.checks spoiled --folder DIR      # spoiled clauses per 1,000, before and after
    python -m benchmarks.checks cost                      # processor time and first sound, in turns

The texts are sentences of the bundled model's domain. Faults are put into its speech where a client requests a clause
(`FaultyClient`). The folder stores the speech.
"""

import argparse
import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faulty_speech import KINDS, RATE, Attempt, FaultyClient, Plan
from benchmarks.harness import (
    append_result,
    command_line,
    cpu_s,
    median_ratio,
    served_processes,
    serving,
    stop_on_sigterm,
)
from benchmarks.loads import Load, check, run, summarise, through_triton
from lab.texts import texts
from stretto_client import SpeechClient
from stretto_client.markup import Markup
from training.tiny.text import QUESTIONS, clause, fill

SEED = 1
CLAUSES = 8  # of a text of several clauses
BREAK = '<break time="300ms"/>'  # separates clauses
CLIENT = "client"
LONGEST = 300  # characters of a long clause
SPEEDS = (2.0, 3.0, 5.0)  # multiples of real time at which speech is generated
LEAST_WAIT_S = 0.01


def sentences(number: int) -> list[str]:
    """Return distinct sentences of the bundled model's domain, sampled with a seed that training does not use."""
    rng = random.Random(SEED)
    drawn = dict[str, None]()
    while len(drawn) < number:
        text = fill(rng.choice(QUESTIONS), rng) + "?" if rng.random() < 0.12 else clause(rng) + "."
        drawn[text.capitalize()] = None
    return list(drawn)


def long_clauses(texts: Sequence[str]) -> list[str]:
    """Return the texts joined into clauses, as many in each as fit."""
    clauses = [""]
    for text in texts:
        if len(clauses[-1]) + 1 + len(text) > LONGEST:
            clauses.append("")
        clauses[-1] = f"{clauses[-1]} {text}".strip()
    return clauses


def clauses_of(request: str) -> list[str]:
    """Return the texts of a request's clauses."""
    return request.removeprefix("<speak>").removesuffix("</speak>").split(BREAK)


def is_faulty(request: str, plan: Plan) -> bool:
    """Return True if the first attempt to speak a clause of the request is faulty. Only such requests change."""
    return any(plan.kind_of(clause, SEED)[0] is not None for clause in clauses_of(request))


def checking(check: str) -> dict[str, Any]:
    """Return the options of a check. The bundled model transcribes its own speech to check the words."""
    return {"check": check} if check != "words" else {"check": check, "check_with": "self"}


def bounds(count: int, total: int) -> tuple[float, float]:
    """Return the bounds of a share with 95 % confidence (Wilson's interval)."""
    z = 1.96
    centre = (count + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * (count * (total - count) / total + z * z / 4) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def shown(count: int, total: int, scale: int = 100) -> str:
    """Return a share and its bounds, in percent or per `scale`."""
    low, high = bounds(count, total)
    return f"{scale * count / total:.1f} ({scale * low:.1f} to {scale * high:.1f})"


@dataclass(frozen=True)
class Reply:
    """Reply to a request.

    Attributes:
        sent: For each clause, the attempt that was sent last.
        report: The last event's report.
        starts: For each event with samples, the speech generated up to then and the speech sent before, in seconds.
    """

    sent: list[Attempt]
    report: dict[str, Any]
    starts: list[tuple[float, float]]

    def wait_s(self, speed: float) -> float:
        """Return the seconds that a player waits after the first samples, if speech is generated at this speed."""
        begun_s = self.starts[0][0] / speed
        return max(generated_s / speed - begun_s - sent_s for generated_s, sent_s in self.starts)


async def replies_to(client: FaultyClient, requests: Sequence[str], **options: Any) -> list[Reply]:
    """Send all requests, one after another, and return the replies."""
    return [await _reply(client, text, options) for text in requests]


async def _reply(client: FaultyClient, text: str, options: dict[str, Any]) -> Reply:
    markup: Markup = "ssml" if text.startswith("<speak>") else "none"
    markers = dict[str, str]()
    starts = list[tuple[float, float]]()
    report: dict[str, Any] = {}
    before_s = client.generated_s
    async for event in client.speak(text, seed=SEED, markup=markup, **options):
        if event.pcm is not None:
            clause = client.attempts[int(event.marker)].text
            markers[clause] = event.marker
            starts.append((client.generated_s - before_s, event.start_s))
        report = event.report or report
    return Reply([client.attempts[int(marker)] for marker in markers.values()], report, starts)


async def found(client: FaultyClient, arguments: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    """Yield a record for clean speech and for each kind of fault, with the counts of each signal's reports."""
    for kind in ("clean", *KINDS):
        client.plan = Plan() if kind == "clean" else Plan(1.0, (kind,))
        asked = client.others if kind == "clean" else client.others[: arguments.faulty]
        for mode in arguments.check:
            replies = await replies_to(client, asked, **checking(mode), attempts=1)
            names = [{fault["fault"] for fault in reply.report["faults"]} for reply in replies]
            any_fault = sum(map(bool, names))
            signals = Counter(name for faults in names for name in faults)
            record = {"injected": kind, "check": mode, "clips": len(replies), "found": any_fault}
            record["unchecked"] = sum("unchecked" in reply.report for reply in replies)
            yield record | {"percent": shown(any_fault, len(replies)), "signals": dict(signals)}


async def spoiled(client: FaultyClient, arguments: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    """Yield a record for each check and form of the texts: clauses that were sent with a fault."""
    lists = [
        f"<speak>{BREAK.join(client.others[start : start + CLAUSES])}</speak>"
        for start in range(0, len(client.others), CLAUSES)
    ]
    texts_of = {"one clause": client.others, f"{CLAUSES} clauses": lists, "long clause": long_clauses(client.others)}
    holds = [0.0, *arguments.hold_s]
    forms: list[tuple[str, list[str], dict[str, Any]]] = [
        (f"{name}, {held_s:g} s held" if held_s else name, requests, {"hold_s": held_s})
        for name, requests in texts_of.items()
        for held_s in holds
    ]
    for share in arguments.shares:
        for form, requests, options in (form for form in forms if form[0].split(",")[0] in arguments.forms):
            for mode in ("off", *arguments.check):
                counts: defaultdict[str, float] = defaultdict(float)
                for draw in range(arguments.draws if share else 1):
                    client.plan = Plan(share, draw=draw)
                    asked = [request for request in requests if not share or is_faulty(request, client.plan)]
                    replies = await replies_to(client, asked, **checking(mode), **options)
                    sent = [attempt for reply in replies for attempt in reply.sent]
                    counts["clauses"] += sum(map(len, map(clauses_of, requests)))
                    counts["faulty_at_first"] += sum(
                        client.plan.kind_of(attempt.text, SEED)[0] is not None for attempt in sent
                    )
                    counts["spoiled"] += sum(attempt.kind is not None for attempt in sent)
                    for speed in SPEEDS:
                        waits = [reply.wait_s(speed) > LEAST_WAIT_S for reply in replies if reply.report.get("redrawn")]
                        counts[f"waits_at_{speed:g}"] += sum(waits)
                    counts["requests_redrawn"] += sum(reply.report.get("redrawn", 0) > 0 for reply in replies)
                    counts["first_s"] += sum(reply.starts[0][0] for reply in replies)
                    counts["redrawn"] += sum(reply.report.get("redrawn", 0) for reply in replies)
                    counts["redrawn_s"] += sum(reply.report.get("redrawn_s", 0.0) for reply in replies)
                    counts["sent_s"] += sum(len(attempt.speech.pcm) for attempt in sent) / RATE
                per_1000 = shown(int(counts["spoiled"]), int(counts["clauses"]), 1000)
                yield {"texts": form, "check": mode, "share": share, "spoiled_per_1000": per_1000, **counts}


async def cost(client: SpeechClient, concurrency: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return processor time and first sound with each check, in turns, and their ratios to those without a check."""
    lines = texts()
    modes = ("off", *arguments.check)
    pids = served_processes() | {CLIENT: os.getpid()}
    used: defaultdict[str, list[float]] = defaultdict(list)
    first: defaultdict[str, list[float]] = defaultdict(list)
    served: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(arguments.rounds + 1):  # the first one warms up
        for mode in modes if number % 2 else modes[::-1]:
            before_s = sum(cpu_s(pids).values())
            load = Load(concurrency, max(1, arguments.requests // concurrency), None, None)
            traces, wall_s = await run(load, through_triton(client, **checking(mode)), lines)
            used_s = sum(cpu_s(pids).values()) - before_s
            check(traces)
            summary = summarise(traces, wall_s)
            if number:
                used[mode].append(1e3 * used_s / sum(trace.audio_s for trace in traces))
                first[mode].append(1e3 * summary["first_sound_p50"])
                served[mode].append(summary["audio_throughput"])
    record: dict[str, Any] = {"concurrency": concurrency, "rounds": arguments.rounds}
    named = {"cpu_ms_per_audio_s": used, "first_sound_ms": first, "audio_throughput": served}
    for name, values in named.items():
        record[name] = {mode: round(sorted(values[mode])[len(values[mode]) // 2], 1) for mode in modes}
        record[f"{name}_ratio"] = {mode: round(median_ratio(values[mode], values["off"]), 4) for mode in modes[1:]}
    return record


async def measure(address: str, arguments: argparse.Namespace) -> None:
    if arguments.measurement == "cost":
        async with SpeechClient(address) as client:
            for concurrency in arguments.concurrency:
                append_result(arguments.out, "checks", await cost(client, concurrency, arguments))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    async with FaultyClient(address, arguments.folder, sentences(arguments.number)) as faulty:
        async for record in {"found": found, "spoiled": spoiled}[arguments.measurement](faulty, arguments):
            append_result(arguments.out, "checks", {"measurement": arguments.measurement, **record})


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_line(
        __doc__,
        "checks",
        serves=True,
        folder=(Path, "folder of the recordings, for `found` and `spoiled`"),
        check=(["signals"], "checks to measure"),
        number=(1000, "number of sentences"),
        faulty=(200, "number of sentences with each kind of fault, for `found`"),
        shares=([0.0, 0.02], "shares of faulty attempts, for `spoiled`"),
        forms=(["one clause", f"{CLAUSES} clauses"], "forms of the texts, also `long clause`, for `spoiled`"),
        draws=(5, "number of draws of the faulty attempts, for `spoiled`"),
        concurrency=([1, 4, 16], "numbers of simultaneous streams, for `cost`"),
        requests=(16, "number of requests in each turn, for `cost`"),
        rounds=(8, "number of turns, for `cost`"),
    )
    parser.add_argument("measurement", choices=("found", "spoiled", "cost"))
    parser.add_argument("--hold-s", type=float, nargs="+", default=[], help="first clauses held back, for `spoiled`")
    arguments = parser.parse_args(argv)
    if arguments.folder is None and arguments.measurement != "cost":
        parser.error(f"--folder: required for {arguments.measurement}")
    return arguments


def main(arguments: argparse.Namespace) -> None:
    stop_on_sigterm()
    with serving(arguments.model_repository) as address:
        asyncio.run(measure(address, arguments))


if __name__ == "__main__":
    main(parse())
