"""Cost and effects of the marker `perth`: processor time, word errors, and what remains of a mark in a cloned voice.

    python -m benchmarks.marking cost --streams 1 16 32
    python -m benchmarks.marking words --sentences 40 --seeds 5
    python -m benchmarks.marking codec --sentences 40

`cost` plays live streams through the decoder of the bundled model. The clock is processor time, as in
`benchmarks.decoder --clock processor`, so that other load affects it little.

`words` speaks random sentences of the model's domain, and transcribes them as they are and marked, by the model itself.

`codec` encodes and decodes speech with the bundled codec, as it is and marked, and has the published detector
(resemble-perth) score all four: models that clone a voice read the codes of a recording, so a mark that does not pass
the codec cannot reach their reply through the codes.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.decoder import LiveLoad, LiveStreams, ProcessorTime, random_codes
from benchmarks.harness import CHECKPOINT, append_result, command_line
from benchmarks.int8_words import ARGUMENTS, replies, samples_of, transcription, word_errors, words
from stretto import SpeechLLM
from stretto.codecs.base import Codec, load_codec
from stretto.config import DecoderConfig, EngineConfig
from stretto.marking.perth import MARKER, PerthStream
from stretto.preprocessing.audio import resample
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.streams.chunking import ChunkPolicy
from stretto.triton_io.flow import FlowTable
from stretto.verification.command import MARKED, RATE, open_detector
from training.tiny.text import domain_sentence


class TimedMarker:
    """The marker `perth` with a stopwatch; its interface is that of `Marker`.

    Attributes:
        took_s: Processor time of all calls in seconds.
        num_samples: Number of marked samples.
    """

    def __init__(self) -> None:
        self.took_s = 0.0
        self.num_samples = 0

    def stream(self, sample_rate: int, samples_per_frame: int) -> PerthStream:
        """Begin an utterance."""
        timed = self

        class TimedStream(PerthStream):
            def push(self, pcm: np.ndarray, is_final: bool) -> np.ndarray:
                begun = time.thread_time()
                marked = super().push(pcm, is_final)
                timed.took_s += time.thread_time() - begun
                timed.num_samples += len(pcm)
                return marked

        return TimedStream(sample_rate, samples_per_frame)


def measure_cost(codec: Codec, streams: int, seconds: float) -> dict[str, Any]:
    """Return the processor time of the marker, and its share of the decoder's.

    Args:
        codec: Codec of the decoder.
        streams: Number of streams.
        seconds: Duration of each stream.
    """
    spec = codec.spec
    marker = TimedMarker()
    policy = ChunkPolicy(4, 25, frame_rate=spec.frame_rate, held_frames=spec.right_frames)
    stage = ProcessorTime(codec, DecoderConfig(max_utterances=4096), marker=marker)
    with tempfile.TemporaryDirectory() as folder:
        table = FlowTable.create(0, directory=Path(folder))
        table.clock = stage.now
        live = LiveStreams(stage, spec, random_codes(codec, 1, 1000)[0].numpy(), table)
        live.run(LiveLoad(2, 2.0, 2 * spec.frame_rate), policy)  # warms up
        marker.took_s = 0.0
        marker.num_samples = 0
        begun = time.thread_time()
        traces, sizes, _ = live.run(LiveLoad(streams, seconds, spec.frame_rate), policy)
        total_s = time.thread_time() - begun
        table.remove()
    assert not any(trace.error for trace in traces)
    audio_s = marker.num_samples / spec.sample_rate
    return {
        "streams": streams,
        "audio_s": round(audio_s, 2),
        "frames_per_chunk": round(statistics.mean(sizes), 1),
        "marking_ms_per_audio_s": round(1000 * marker.took_s / audio_s, 3),
        "marking_over_decoder": round(marker.took_s / (total_s - marker.took_s), 4),
    }


def mark(pcm: np.ndarray, codec: Codec) -> np.ndarray:
    """Return marked samples, float32 [n], as the decoder sends them."""
    stream = MARKER.stream(codec.spec.sample_rate, codec.spec.samples_per_frame)
    return np.clip(stream.push(pcm, True), -1, 1)


async def spoken(llm: SpeechLLM, preprocessor: Preprocessor, sentences: int, seed: int) -> dict[str, np.ndarray]:
    """Return samples [n] of random sentences of the model's domain, keyed by the sentence."""
    rng = random.Random(seed)
    options = json.dumps({"seed": seed})
    fitting = (each for each in iter(partial(domain_sentence, rng), None) if len(each) <= 160)
    texts = list(islice(fitting, sentences))
    asked = [preprocessor.prepare(RawRequest(text=each, task="tts", options=options)) for each in texts]
    codes = [codes for codes, _ in await replies(llm, asked)]
    return {text: samples_of(preprocessor.codec, each) for text, each in zip(texts, codes, strict=True)}


async def measure_words(sentences: int, seeds: int) -> dict[str, Any]:
    """Return the word errors of unmarked and marked speech in percent, for each seed."""
    preprocessor = Preprocessor(CHECKPOINT)
    errors: dict[str, list[float]] = {"unmarked": [], "marked": []}
    llm = SpeechLLM.launch(EngineConfig(CHECKPOINT, ARGUMENTS))
    num_words = 0
    try:
        for seed in range(1, seeds + 1):
            voices = await spoken(llm, preprocessor, sentences, seed)
            wanted = [words(text) for text in voices]
            num_words += sum(map(len, wanted))
            for name, change in (("unmarked", lambda pcm: pcm), ("marked", partial(mark, codec=preprocessor.codec))):
                heard = [
                    transcription(preprocessor, change(pcm), json.dumps({"seed": seed})) for pcm in voices.values()
                ]
                found = [words(text) for _, text in await replies(llm, heard)]
                wrong = sum(map(word_errors, wanted, found))
                errors[name].append(round(100 * wrong / sum(map(len, wanted)), 2))
    finally:
        llm.shutdown()
    means = {f"{name}_mean": round(statistics.mean(each), 2) for name, each in errors.items()}
    differences = [b - a for a, b in zip(errors["unmarked"], errors["marked"], strict=True)]
    return (
        {"sentences": sentences * seeds, "words": num_words}
        | errors
        | means
        | {
            "difference_mean": round(statistics.mean(differences), 2),
            "difference_standard_error": round(statistics.stdev(differences) / seeds**0.5, 2) if seeds > 1 else None,
        }
    )


def again(pcm: np.ndarray, codec: Codec) -> np.ndarray:
    """Encode samples [n] and decode the codes."""
    return samples_of(codec, codec.encode(pcm))


async def measure_codec(sentences: int) -> dict[str, Any]:
    """Return the detector's scores of speech, marked speech, and both after the codec."""
    preprocessor = Preprocessor(CHECKPOINT)
    detector = open_detector()
    codec = preprocessor.codec
    scores = dict[str, list[float]]()
    llm = SpeechLLM.launch(EngineConfig(CHECKPOINT, ARGUMENTS))
    try:
        voices = await spoken(llm, preprocessor, sentences, seed=1)
    finally:
        llm.shutdown()
    for pcm in voices.values():
        marked = mark(pcm, codec)
        versions = {"unmarked": pcm, "marked": marked}
        versions |= {f"{name}_after_codec": again(each, codec) for name, each in list(versions.items())}
        versions["marked_after_codec_and_marked_again"] = mark(versions["marked_after_codec"], codec)
        for name, each in versions.items():
            score = detector.score(resample(each, codec.spec.sample_rate, RATE))
            scores.setdefault(name, []).append(0.0 if score is None else score)
    return {"sentences": sentences} | {
        name: {
            "median": round(statistics.median(each), 3),
            "lowest": round(min(each), 3),
            "highest": round(max(each), 3),
            "found": sum(score >= MARKED for score in each),
        }
        for name, each in scores.items()
    }


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write a line for each measurement."""
    if arguments.what == "cost":
        torch.set_num_threads(1)
        codec = load_codec("tiny", CHECKPOINT)
        for streams in arguments.streams:
            figures = measure_cost(codec, streams, arguments.seconds)
            append_result(arguments.out, "marking_cost", figures)
    elif arguments.what == "words":
        figures = asyncio.run(measure_words(arguments.sentences, arguments.seeds))
        append_result(arguments.out, "marking_words", figures)
    else:
        append_result(arguments.out, "marking_codec", asyncio.run(measure_codec(arguments.sentences)))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        "marking",
        streams=([1, 16, 32], "numbers of streams (`cost`)"),
        seconds=(10.0, "seconds of audio in a stream (`cost`)"),
        sentences=(40, "sentences for each seed (`words`, `codec`)"),
        seeds=(5, "number of seeds (`words`)"),
    )
    parser.add_argument("what", choices=["cost", "words", "codec"])
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(parse())
