"""A codec that decodes in blocks, as wide as published: speed of each block of an utterance through the decoder.

`rtf` is the time from the chunk that completes a block to the last client's samples, divided by the duration of the
block; above 1 a player underruns. Utterances run together, their blocks in the same batch.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.blocks import spans_of
from benchmarks.checkpoints.random_glm4_voice import write_glm4_voice
from benchmarks.decoder import CountingReply
from benchmarks.gpu.decoder import capture_errors
from benchmarks.gpu.jobs import Setup
from stretto.codecs.glm4_voice import Glm4VoiceCodec, load
from stretto.config import DecoderConfig
from stretto.decoder.launching import WORTH_CAPTURING
from stretto.decoder.worker import DecoderWorker
from stretto.records.chunk import Chunk
from stretto.streams.layout import Segment

BATCHES, NUM_BLOCKS, ROUNDS = (1, 8), 4, 3


def run(setup: Setup) -> Iterator[dict[str, Any]]:
    """Yield a line for each block and number of utterances, without graphs and with them."""
    batches, num_blocks, rounds = ((1,), 2, 1) if setup.is_small else (BATCHES, NUM_BLOCKS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        codec = load(write_glm4_voice(Path(folder) / "codec", is_narrow=setup.is_small), setup.device)
    sizes = [stop - start for start, stop in spans_of(codec, num_blocks)]
    for graphs in (False, True):
        config = DecoderConfig(device=setup.device, graphs=graphs, max_batch=batches[-1])
        with capture_errors() as errors:
            worker = DecoderWorker(codec, config)
            for batch in batches:
                warm_up = 0 if setup.is_small else WORTH_CAPTURING if graphs else 1
                times = [speak(worker, codec, batch, sizes) for _ in range(warm_up + rounds)][warm_up:]
                for index, size in enumerate(sizes):
                    wall_s, audio_s = statistics.median(each[index] for each in times), size / codec.spec.frame_rate
                    about = {"graphs": graphs, "batch": batch, "block": index, "tokens": size}
                    yield {**about, "ms": round(1e3 * wall_s, 3), "rtf": round(wall_s / audio_s, 5)}
            worker.stop()
        if errors:
            yield {"graphs": graphs, "capture_errors": errors, "ok": False}


def speak(worker: DecoderWorker, codec: Glm4VoiceCodec, batch: int, sizes: list[int]) -> list[float]:
    """Return the seconds of each block of `batch` utterances together; then end them to decode retained tokens."""
    random, times = np.random.default_rng(0), list[float]()
    for index, size in enumerate(sizes):
        codes = random.integers(0, codec.spec.codebook_size, (batch, 1, size))
        begun, reply = time.perf_counter(), CountingReply(batch)
        for utterance in range(batch):
            worker.push(str(utterance), Chunk(index, Segment.AUDIO, is_final=False), codes[utterance], reply)
        reply.wait()
        times.append(time.perf_counter() - begun)
    end = CountingReply(batch)
    for utterance in range(batch):
        worker.push(str(utterance), Chunk(len(sizes), Segment.AUDIO, is_final=True), codes[utterance, :, :0], end)
    end.wait()
    return times
