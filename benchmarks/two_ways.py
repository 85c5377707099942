"""The same load by two ways in turns, through a process before the server and past it: what that process costs."""

import statistics
from itertools import islice
from typing import Any

import psutil

from benchmarks.speech_load import Load, Speak, check, ratio, run, texts


def cpu_s(process: psutil.Process) -> float:
    """Seconds of processor time that the process has used."""
    times = process.cpu_times()
    return times.user + times.system


async def compare(
    name: str, load: Load, rounds: int, process: psutil.Process, through: Speak, past: Speak
) -> dict[str, Any]:
    """The record of `rounds` rounds, after a small load that warms both ways up; `name` is what figures of the process
    begin with. In a round both ways get the same texts and seeds; which of them is first changes from round to round.
    """
    lines, ways = texts(), {"through": through, "past": past}
    throughput: dict[str, list[float]] = {way: [] for way in ways}
    first_s: dict[str, list[float]] = {way: [] for way in ways}
    used_s = audio_s = 0.0
    for speak in ways.values():
        warm_up = Load(min(load.concurrency, 4), 1, load.frames, load.guidance_scale)
        check((await run(warm_up, speak, lines))[0])
    for number in range(rounds):
        spoken = list(islice(lines, load.concurrency * load.requests))
        for way in sorted(ways, reverse=number % 2 == 1):
            before_s = cpu_s(process)
            traces, wall_s = await run(load, ways[way], iter(spoken))
            check(traces)
            throughput[way].append(sum(trace.audio_s for trace in traces) / wall_s)
            first_s[way] += [trace.arrivals[0] - trace.sent for trace in traces]
            if way == "through":
                used_s += cpu_s(process) - before_s
                audio_s += sum(trace.audio_s for trace in traces)
    medians = {way: statistics.median(values) for way, values in first_s.items()}
    return {
        "concurrency": load.concurrency,
        f"{name}_throughput_ratio": ratio(throughput["through"], throughput["past"]),
        f"{name}_first_audio_ms": round(1000 * (medians["through"] - medians["past"]), 2),
        f"{name}_cpu_ms_per_audio_s": round(1000 * used_s / audio_s, 3),
        "audio_throughput": round(statistics.median(throughput["through"]), 3),
        "audio_ttfp_p50": round(medians["through"], 5),
    }
