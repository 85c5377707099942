"""Measure the time to the first audio for text that is spoken while it is being written.

    python -m benchmarks.live_text --streams 1 4

The benchmark starts its own server with a small, randomly initialised Qwen3-TTS. Three arms with equal texts, seeds and
frames take turns. `at_once` sends the complete text in a single request, and the model reads it alongside the frames.
`by_words` sends the text word by word without pauses. `at_pace` sends it word by word at the speed of a language model
(`--words-per-s`). Times count from the first word. The benchmark writes one line of JSON for each number of streams.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.checkpoints.small_models import SMALL_MODELS, write_checkpoint
from benchmarks.harness import append_result, command_line, serving, stop_on_sigterm
from benchmarks.loads import Load, Speak, Trace, check, follow, percentiles, ratio, run, texts, underrun_s
from stretto.convert.make_repository import make
from stretto_client import SpeechClient

FAMILY = "qwen3-tts-small"
MAX_ROWS = 64  # most rows in a step
ARMS = ("at_once", "by_words", "at_pace")


def words_of(text: str) -> list[str]:
    """Split a text into words, each with its preceding space."""
    first, *others = text.split()
    return [first, *(f" {word}" for word in others)]


async def written(text: str, pause_s: float) -> AsyncIterator[str]:
    """Yield the words of `text`, `pause_s` seconds apart."""
    begun = time.perf_counter()
    for index, word in enumerate(words_of(text)):
        await asyncio.sleep(max(0.0, begun + index * pause_s - time.perf_counter()))
        yield word


def speaker(client: SpeechClient, arm: str, words_per_s: float) -> Speak:
    """Return a function that requests speech for a text in the way of one arm."""
    known = SMALL_MODELS[FAMILY].options

    async def speak(text: str, options: dict[str, Any]) -> Trace:
        trace = Trace(sent=time.perf_counter())
        given = {**known, **options}
        if arm == "at_once":
            return await follow(trace, client.speak(text, text_mode="streaming", **given))
        pause_s = 0.0 if arm == "by_words" else 1 / words_per_s
        return await follow(trace, client.speak(written(text, pause_s), **given))

    return speak


def figures(arm: str, runs: list[tuple[list[Trace], float]]) -> dict[str, float]:
    """Return an arm's figures: time to first audio, longest underrun, and seconds of audio per second."""
    traces = [trace for each, _ in runs for trace in each]
    first = percentiles(f"{arm}_first_audio", [trace.first_s for trace in traces])
    waits = percentiles(f"{arm}_underrun", [underrun_s(trace) for trace in traces])
    speed = statistics.median(sum(trace.audio_s for trace in each) / wall_s for each, wall_s in runs)
    return first | waits | {f"{arm}_audio_throughput": round(speed, 4)}


async def measure(client: SpeechClient, streams: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all arms at one number of streams and return the record."""
    load = Load(streams, arguments.requests, arguments.frames, None)
    arms = {arm: speaker(client, arm, arguments.words_per_s) for arm in ARMS}
    runs: dict[str, list[tuple[list[Trace], float]]] = {arm: [] for arm in ARMS}
    for speak in arms.values():
        check((await run(Load(streams, 1, load.frames, None), speak, texts()))[0])
    for turn in range(arguments.rounds):
        for arm, speak in arms.items():
            traces, wall_s = await run(load, speak, islice(texts(), turn * streams * load.requests, None))
            check(traces)
            runs[arm].append((traces, wall_s))
    medians = {
        arm: [statistics.median(trace.first_s for trace in traces) for traces, _ in of_arm]
        for arm, of_arm in runs.items()
    }
    record: dict[str, Any] = {"family": FAMILY, "streams": streams, "words_per_s": arguments.words_per_s}
    record |= {"frames": load.frames, "writing_s": round((len(words_of(next(texts()))) - 1) / arguments.words_per_s, 3)}
    for arm in ARMS[1:]:
        record[f"{arm}_over_at_once"] = ratio(medians[arm], medians["at_once"])
    for arm in ARMS:
        record |= figures(arm, runs[arm])
    return record


async def main(arguments: argparse.Namespace) -> None:
    """Start a server, measure each number of streams and write a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(SMALL_MODELS[FAMILY].family, Path(folder) / "checkpoint")
        make(checkpoint, Path(folder) / "repository", {"max_num_seqs": MAX_ROWS})
        with serving(Path(folder) / "repository") as address:
            async with SpeechClient(address) as client:
                for streams in arguments.streams:
                    append_result(arguments.out, "live_text", await measure(client, streams, arguments))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return command_line(
        __doc__,
        "live_text",
        streams=([1, 4], "numbers of simultaneous streams"),
        requests=(3, "utterances per stream in each round"),
        rounds=(5, "number of turns for each arm"),
        frames=(40, "frames per utterance; must exceed the number of its text tokens"),
        words_per_s=(8.0, "words per second in the arm `at_pace`"),
    ).parse_args(words)


if __name__ == "__main__":
    stop_on_sigterm()
    asyncio.run(main(parse()))
