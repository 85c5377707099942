"""Time to the first audio, its lower bound computed from step times, and audio generated per second.

`ttfp_floor` is prefill + (longest delay + first chunk + right context of the codec) x median step + one decode of the
first chunk. `ttfp` is measured at the engine, from the queue to the last row of a reply's first chunk, plus the same
decode. `prefill` lasts until every reply has its first row. Replies start together.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints import random_codecs as random_weights
from benchmarks.checkpoints import random_espnet
from benchmarks.checkpoints.random_qwen3_codec import write_qwen3_codec
from benchmarks.engines import SteppedEngine
from stretto.codecs.base import Codec, Window
from stretto.codecs.registry import load_codec
from stretto.families.base import Family


@dataclass(frozen=True)
class Burst:
    """Times in seconds of replies that start together. ttfp_s: median over the replies."""

    prefill_s: float
    ttfp_s: float
    step_s: float
    wall_s: float


def first_rows(family: Family, codec: Codec) -> int:
    """Return the rows of an audio reply until its first chunk can be decoded."""
    return max(family.layout.delays) + family.first_chunk_frames + codec.spec.right_frames


def audio_s(family: Family, num_rows: int) -> float:
    """Return the seconds of audio in a reply of `num_rows` rows of audio."""
    incomplete = family.tail.num_closing_rows(family.layout.max_delay)
    return (num_rows - incomplete) / family.frame_rate


def time_burst(engine: SteppedEngine, request_ids: list[str], num_rows: int, first: int, num_streams: int) -> Burst:
    """Step `engine` until all replies have ended. Full steps decode `num_rows` rows; a first chunk has `first` rows."""
    core, scheduler = engine.core, engine.scheduler
    rows, reached = dict.fromkeys(request_ids, 0.0), dict[str, float]()
    prefill_s, step_s, begun = 0.0, [], time.perf_counter()
    while scheduler.has_requests() or core.batch_queue:
        before, since = engine.num_decoding(), time.perf_counter()
        outputs = engine.step() or {}
        now = time.perf_counter()
        if before == engine.num_decoding() == num_rows:
            step_s.append(now - since)
        for output in [output for each in outputs.values() for output in each.outputs]:
            if output.request_id in rows:
                rows[output.request_id] += len(output.new_token_ids) / (1 + num_streams)
                if rows[output.request_id] >= first:
                    reached.setdefault(output.request_id, now - begun)
        if not prefill_s and all(rows.values()):
            prefill_s = now - begun
    wall_s = time.perf_counter() - begun
    assert len(reached) == len(request_ids), f"{len(reached)} of {len(request_ids)} replies had {first} rows"
    return Burst(prefill_s, statistics.median(reached.values()), statistics.median(step_s), wall_s)


def figures(bursts: list[Burst], family: Family, codec: Codec, number: int, num_rows: int) -> dict[str, float]:
    """Return medians over bursts of `number` replies of `num_rows` rows each."""

    def median(figure: Callable[[Burst], float]) -> float:
        return statistics.median(map(figure, bursts))

    rows = first_rows(family, codec)
    decode_s = time_decode(codec, number, family.first_chunk_frames + codec.spec.right_frames)
    ttfp_s = median(lambda each: each.ttfp_s) + decode_s
    floor_s = median(lambda each: each.prefill_s + rows * each.step_s) + decode_s
    return {
        "step_ms": round(1e3 * median(lambda each: each.step_s), 4),
        "prefill_ms": round(1e3 * median(lambda each: each.prefill_s), 3),
        "decode_ms": round(1e3 * decode_s, 3),
        "first_rows": rows,
        "ttfp_s": round(ttfp_s, 5),
        "ttfp_floor_s": round(floor_s, 5),
        "ttfp_over_floor": round(ttfp_s / floor_s, 4),
        "audio_s_per_s": round(number * audio_s(family, num_rows) / median(lambda each: each.wall_s), 2),
    }


def make_codec(family: Family, device: str, is_small: bool) -> Codec:
    """Return the family's codec with random weights.

    X-codec and Qwen3-TTS' codec are as wide as published. ESPnet's is narrow, because its published width is known only
    from the release.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "codec"
        if family.codec == "xcodec":
            random_weights.write_checkpoint("xcodec", directory, is_narrow=is_small)
        elif family.codec == "qwen3_12hz":
            write_qwen3_codec(directory, "small" if is_small else "wide")
        else:
            random_espnet.write_codec(directory, family.layout.codebook_size)
        return load_codec(family.codec, Path(folder), device, family.layout.num_codebooks)


def time_decode(codec: Codec, number: int, num_frames: int) -> float:
    """Return the seconds of one decode of the first chunks of `number` utterances: median of five after two more."""
    spec = codec.spec
    shape = (number, spec.num_codebooks, num_frames)
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, spec.codebook_size, shape))
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        seen = torch.zeros(number, dtype=torch.int64)
        pcm: Any = codec.decode(Window(codes, 0, 0, seen, codec.initial_state(number)))[0]
        pcm.cpu()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])
