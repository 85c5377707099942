"""Live full-duplex sessions through the real server: small Moshi, random weights.

    python -m benchmarks.live_sessions --sessions 8 64 --seconds 16 --slowdown 8
    python -m benchmarks.live_sessions --sessions --rows 15000

The first command opens sessions at random phases. Each one sends a frame of 80 ms of audio every 80 ms, or less often
on a machine that cannot keep up: with `--slowdown 8`, every 640 ms. A tick is late if its samples arrive more than
80 ms after its frame was sent. `live_over_recording` is the processor time of all server processes per row, divided by
that of recordings of the same audio, which run afterwards on the same server.

The second command runs one session as fast as the server accepts audio: 15,000 rows are 20 minutes.
Its text and codes are compared with a reply to the same frames as a complete recording, by an engine in this process.
Memory is that of all server processes. One line of JSON for each number of sessions, and for the long session.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import (
    OPENER,
    Launch,
    append_result,
    command_line,
    cpu_s,
    read_usage,
    served_processes,
    stop_on_sigterm,
)
from plugins.kyutai.lab.random_moshi import write_release
from stretto.codecs.base import load_codec
from stretto.codecs.mimi import MimiCodec
from stretto.codecs.mimi_encoder import MimiEncoder
from stretto.convert.command import main as convert
from stretto.convert.make_repository import make
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import Prompt
from stretto_client import SpeechClient, Timeouts
from stretto_kyutai.moshi.family import MoshiVocabulary
from stretto_kyutai.moshi.prompt import first_row, user_ids

NAME = "live_sessions"
RATE = 24_000
FRAME = 1920
SEED = 5
FRAME_S = FRAME / RATE
METRICS_S = 1.0  # interval between two readings of the metrics, which are published every 0.5 s


def audio(number: int, num_frames: int) -> np.ndarray:
    """Return the user's audio in session `number`: noise whose loudness changes, float32 [n]."""
    random = np.random.default_rng([1, number])
    levels = np.repeat(random.uniform(0, 0.3, num_frames).astype(np.float32), FRAME)
    return random.standard_normal(FRAME * num_frames, np.float32).clip(-3, 3) * levels


@contextmanager
def served(folder: Path, sessions: int, rows: int) -> Iterator[tuple[Launch, Path]]:
    """Serve a small random Moshi to this number of sessions; yield the server and its checkpoint."""
    release = write_release(folder / "release")
    checkpoint = folder / "checkpoint"
    assert convert(["moshi", "--model", str(release), "--out", str(checkpoint)]) == 0
    make(checkpoint, folder / "repository", {"max_num_seqs": 2 * sessions, "max_model_len": rows + 64})
    launch = Launch(folder / "repository", folder)
    launch.start()
    try:
        yield launch, checkpoint
    finally:
        launch.stop()


def metric(launch: Launch, name: str) -> float:
    """Return a metric of the language model."""
    with OPENER.open(f"http://localhost:{launch.metrics}/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    (value,) = [float(line.split()[-1]) for line in lines if line.startswith(f"stretto_{name}{{")]
    return value


def patient() -> Timeouts:
    """Return timeouts for a busy machine."""
    return Timeouts(first_s=7200, between_s=7200, total_s=7200)


@dataclass
class Session:
    """Sender of a recording frame by frame, and reader of the reply.

    Attributes:
        pcm: The user's audio.
        phase_s: Time before the first frame; None to send frames as fast as the server accepts them.
        interval_s: Time between frames.
        sent_s: Time at which each frame was sent; empty without a pace.
        received_s: Time at which each frame of the reply was received.
    """

    pcm: np.ndarray
    phase_s: float | None = None
    interval_s: float = FRAME_S
    sent_s: list[float] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)
    codes: list[np.ndarray] = field(default_factory=list)

    async def pieces(self) -> AsyncIterator[np.ndarray]:
        """Yield frames; at the pace of speech if there is a phase."""
        begun_s = time.monotonic() + (self.phase_s or 0.0)
        for index, at in enumerate(range(0, len(self.pcm), FRAME)):
            if self.phase_s is not None:
                await asyncio.sleep(begun_s + self.interval_s * index - time.monotonic())
                self.sent_s.append(time.monotonic())
            yield self.pcm[at : at + FRAME]

    async def talk(self, client: SpeechClient) -> None:
        """Send the audio, and read the reply to its end."""
        async for event in client.talk(self.pieces(), RATE, seed=SEED, output={"codes": True}):
            num_frames = 0 if event.pcm is None else len(event.pcm) // FRAME
            self.received_s += [time.monotonic()] * num_frames
            if event.codes is not None:
                self.codes.append(np.array(event.codes))

    def ticks_s(self) -> np.ndarray:
        """Return the seconds from when a frame was sent until its samples arrived."""
        return np.array(self.received_s) - np.array(self.sent_s)


async def measure(launch: Launch, number: int, seconds: float, slowdown: float = 1.0) -> dict[str, Any]:
    """Return the figures of sessions, and of recordings of the same audio.

    Args:
        launch: The server.
        number: Number of sessions.
        seconds: Duration of the audio of each.
        slowdown: Time between frames, relative to the pace of speech.
    """
    num_frames = round(seconds / FRAME_S)
    random = np.random.default_rng(number)
    interval_s = FRAME_S * slowdown
    sessions = [Session(audio(at, num_frames), random.uniform(0, interval_s), interval_s) for at in range(number)]
    pids = served_processes()
    async with SpeechClient(launch.address, patient()) as client:
        await Session(audio(0, 5)).talk(client)
        await asyncio.sleep(METRICS_S)
        before = cpu_s(pids)
        ticks = metric(launch, "live_ticks_total")
        late = metric(launch, "live_late_frames_total")
        await asyncio.gather(*(session.talk(client) for session in sessions))
        live = {name: seconds_used - before[name] for name, seconds_used in cpu_s(pids).items()}
        await asyncio.sleep(METRICS_S)
        ticks = metric(launch, "live_ticks_total") - ticks
        late = metric(launch, "live_late_frames_total") - late
        before = cpu_s(pids)
        options: Any = {"seed": SEED, "output": {"codes": True}}

        async def read(session: Session) -> None:
            speech = client.transcribe((session.pcm, RATE), task="duplex", **options)
            codes = [np.array(event.codes) async for event in speech if event.codes is not None]
            assert (np.concatenate(codes, 1) == np.concatenate(session.codes, 1)).all(), "live codes differ"

        await asyncio.gather(*map(read, sessions))
        recorded = {name: seconds_used - before[name] for name, seconds_used in cpu_s(pids).items()}
    spent = np.concatenate([session.ticks_s() for session in sessions])
    rows = number * num_frames
    return {
        "sessions": number,
        "seconds": seconds,
        "slowdown": slowdown,
        "frames": rows,
        "live_cpu_ms_per_row": round(1e3 * sum(live.values()) / rows, 3),
        "recording_cpu_ms_per_row": round(1e3 * sum(recorded.values()) / rows, 3),
        "live_over_recording": round(sum(live.values()) / sum(recorded.values()), 3),
        "live_cpu_ms_per_row_by_process": {
            name: round(1e3 * seconds_used / rows, 3) for name, seconds_used in sorted(live.items())
        },
        "late_ticks": int((spent > FRAME_S).sum()),
        "tick_ms": {f"p{share}": round(1e3 * float(np.percentile(spent, share)), 1) for share in (50, 95, 99)},
        "engine_frames": ticks,
        "engine_late_frames": late,
    }


def expected(checkpoint: Path, pcm: np.ndarray) -> np.ndarray:
    """Return the text and codes [9, T] of a reply to a complete recording, by an engine in this process."""
    from stretto.testing.conformance import Engine  # vllm reads the environment when it is imported

    codec = load_codec("mimi", checkpoint, num_codebooks=8)
    assert isinstance(codec, MimiCodec)
    vocabulary = MoshiVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    codes = MimiEncoder(codec).encode_all(pcm)
    written = first_row(vocabulary, tuple(user_ids(vocabulary).push(codes).reshape(-1).tolist()))
    sampling = replace(family_at(checkpoint).tasks[0].sampling, seed=SEED)
    prompt = Prompt("duplex", written.rows, sampling, delayed_tail=written.delayed_tail, track=written.track)
    engine = Engine(checkpoint, max_model_len=codes.shape[1] + 64, max_num_seqs=2)
    rows = engine.run({"r": prompt})["r"].rows
    engine.shutdown()
    ids = np.array(rows[:-1]) - np.array([ids_of_stream.start for ids_of_stream in family_at(checkpoint).layout.audio])
    return np.concatenate([ids[:-1, :2], ids[1:, 2:]], 1).T


async def measure_long(launch: Launch, checkpoint: Path, num_rows: int) -> dict[str, Any]:
    """Return the figures of one long session."""
    session = Session(audio(0, num_rows))
    pids = served_processes()
    rss_mb = list[dict[str, float]]()
    shares = list[float]()

    async def watch() -> None:
        while True:
            usages = {name: read_usage(pid) for name, pid in pids.items()}
            rss_mb.append({name: usage.rss_mb for name, usage in usages.items() if usage is not None})
            shares.append(await asyncio.to_thread(metric, launch, "kv_usage"))
            await asyncio.sleep(METRICS_S)

    async with SpeechClient(launch.address, patient()) as client:
        await Session(audio(1, 500)).talk(client)
        watching = asyncio.create_task(watch())
        begun_s = time.monotonic()
        await session.talk(client)
        wall_s = time.monotonic() - begun_s
        watching.cancel()
    codes = np.concatenate(session.codes, 1)
    wanted = await asyncio.to_thread(expected, checkpoint, session.pcm)
    quarter = max(1, len(rss_mb) // 4)
    held = [max(shares_of_quarter) for shares_of_quarter in (shares[:quarter], shares[-quarter:])]
    warm, end = (
        {name: max(sizes[name] for sizes in quarter_of_sizes) for name in pids}
        for quarter_of_sizes in (rss_mb[:quarter], rss_mb[-quarter:])
    )
    return {
        "rows": num_rows,
        "wall_s": round(wall_s, 1),
        "frames_that_differ": int((codes != wanted).any(0).sum()) + abs(codes.shape[1] - num_rows),
        "kv_usage_first_quarter": round(held[0], 5),
        "kv_usage_last_quarter": round(held[1], 5),
        "rows_recomputed": metric(launch, "live_rows_recomputed_total"),
        "rss_mb_first_quarter": {name: round(size) for name, size in sorted(warm.items())},
        "rss_mb_last_quarter": {name: round(size) for name, size in sorted(end.items())},
        "rss_growth_mb": round(sum(end.values()) - sum(warm.values()), 1),
    }


def main(arguments: argparse.Namespace) -> None:
    """Print the figures of each number of sessions, and of the long session."""
    stop_on_sigterm()
    most = max([1, *arguments.sessions])
    # The server also limits the duration of a session to that of the maximum number of rows.
    rows = max(arguments.rows, round(arguments.seconds * arguments.slowdown / FRAME_S))
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), most, rows) as (launch, checkpoint):
        for number in arguments.sessions:
            append_result(
                arguments.out, NAME, asyncio.run(measure(launch, number, arguments.seconds, arguments.slowdown))
            )
        if arguments.rows:
            append_result(arguments.out, NAME, asyncio.run(measure_long(launch, checkpoint, arguments.rows)))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(
        __doc__,
        NAME,
        seconds=(16.0, "duration of each session's audio"),
        slowdown=(1.0, "time between frames, relative to the pace of speech"),
        rows=(0, "rows of the long session; 0 for none"),
    )
    parser.add_argument("--sessions", type=int, nargs="*", default=[8, 64], help="sessions at once; default: 8 64")
    return parser.parse_args(words)


if __name__ == "__main__":
    main(parse())
