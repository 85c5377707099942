"""How soon a text is heard that is written while it is spoken: Qwen3-TTS in small, random weights, its own server.

    python -m benchmarks.live_text --streams 1 4

Arms take turns, round after round, of equal texts, seeds and frames: `at_once`, all of the text in one request, read
beside the frames; `by_words`, word by word without a pause; `at_pace`, word by word as a language model writes, so many
a second. What is counted begins with the first word. One line of JSON for each number of streams.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.small_models import SMALL_MODELS, write_checkpoint
from benchmarks.results_file import append_result, command_line
from benchmarks.speech_load import Load, Speak, check, follow, ratio, run, texts
from benchmarks.speech_metrics import Trace, percentiles, underrun_s
from benchmarks.temporary_server import serving, stop_on_sigterm
from stretto.convert.make_repository import make
from stretto_client import SpeechClient

FAMILY = "qwen3-tts-small"
MAX_ROWS = 64  # of a step
ARMS = ("at_once", "by_words", "at_pace")


def words_of(text: str) -> list[str]:
    """The pieces in which a text is written, each with the space before it."""
    first, *others = text.split()
    return [first, *(f" {word}" for word in others)]


async def written(text: str, pause_s: float) -> AsyncIterator[str]:
    """The words of `text`, so many seconds apart."""
    begun = time.perf_counter()
    for index, word in enumerate(words_of(text)):
        await asyncio.sleep(max(0.0, begun + index * pause_s - time.perf_counter()))
        yield word


def speaker(client: SpeechClient, arm: str, words_per_s: float) -> Speak:
    """How one arm speaks a text."""
    known = SMALL_MODELS[FAMILY].options

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        trace, given = Trace(sent=time.perf_counter()), {**known, **options}
        if arm == "at_once":
            return await follow(trace, client.speak(text, text_mode="streaming", **given))
        pause_s = 0.0 if arm == "by_words" else 1 / words_per_s
        return await follow(trace, client.speak(written(text, pause_s), **given))

    return speak


def figures(arm: str, runs: list[tuple[list[Trace], float]]) -> dict[str, float]:
    """Seconds from the first word to the first audio, the longest wait of a player, and seconds of audio a second."""
    traces = [trace for each, _ in runs for trace in each]
    first = percentiles(f"{arm}_first_audio", [trace.arrivals[0] - trace.sent for trace in traces])
    waits = percentiles(f"{arm}_underrun", [underrun_s(trace) for trace in traces])
    speed = statistics.median(sum(trace.audio_s for trace in each) / wall_s for each, wall_s in runs)
    return first | waits | {f"{arm}_audio_throughput": round(speed, 4)}


async def measure(client: SpeechClient, streams: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """All arms at one number of streams; the record of their figures."""
    load = Load(streams, arguments.requests, arguments.frames, None)
    arms = {arm: speaker(client, arm, arguments.words_per_s) for arm in ARMS}
    runs: dict[str, list[tuple[list[Trace], float]]] = {arm: [] for arm in ARMS}
    for speak in arms.values():
        check((await run(Load(streams, 1, load.frames, None), speak, texts()))[0])
    for turn in range(arguments.rounds):
        for arm, speak in arms.items():
            traces, wall_s = await run(load, speak, _lines(turn * streams * load.requests))
            check(traces)
            runs[arm].append((traces, wall_s))
    medians = {arm: [_first_s(traces) for traces, _ in of_arm] for arm, of_arm in runs.items()}
    record: dict[str, Any] = {"family": FAMILY, "streams": streams, "words_per_s": arguments.words_per_s}
    record |= {"frames": load.frames, "writing_s": round((len(words_of(next(texts()))) - 1) / arguments.words_per_s, 3)}
    for arm in ARMS[1:]:
        record[f"{arm}_over_at_once"] = ratio(medians[arm], medians["at_once"])
    for arm in ARMS:
        record |= figures(arm, runs[arm])
    return record


def _lines(skipped: int) -> Iterator[str]:
    """Texts that are the same for each arm of a round."""
    lines = texts()
    for _ in range(skipped):
        next(lines)
    return lines


def _first_s(traces: list[Trace]) -> float:
    return statistics.median(trace.arrivals[0] - trace.sent for trace in traces)


async def main(arguments: argparse.Namespace) -> None:
    """A line for every number of streams."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(SMALL_MODELS[FAMILY].family, Path(folder) / "checkpoint")
        make(checkpoint, Path(folder) / "repository", {"max_num_seqs": MAX_ROWS})
        with serving(Path(folder) / "repository") as address:
            async with SpeechClient(address) as client:
                for streams in arguments.streams:
                    append_result(arguments.out, "live_text", await measure(client, streams, arguments))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    flags = command_line(__doc__, "live_text")
    flags.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    flags.add_argument("--requests", type=int, default=3, help="of each stream and round")
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--frames", type=int, default=40, help="of every utterance; more than words have tokens")
    flags.add_argument("--words-per-s", type=float, default=8.0, help="of a writer")
    return flags.parse_args(words)


if __name__ == "__main__":
    stop_on_sigterm()
    asyncio.run(main(parse()))
