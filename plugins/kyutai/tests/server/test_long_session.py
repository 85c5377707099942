"""A live session of 20 minutes through the real server: its frames equal the engine's, and memory stays bounded."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chaos.live import FRAME, RATE, audio
from benchmarks.harness import OPENER, Launch, read_usage, served_processes
from plugins.kyutai.lab.random_moshi import CONFIG, write_release
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

pytestmark = [pytest.mark.server, pytest.mark.nightly]
NUM_ROWS = 15_000  # 20 minutes
SEED = 5
METRICS_S = 1.0  # interval between two readings of the metrics, which are published every 0.5 s
MAX_GROWTH_MB = 16.0  # of each process, after the first quarter
MAX_TRITON_GROWTH_MB = 160.0  # of tritonserver, which keeps about 8 KB for each part and response of a session


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[tuple[Launch, Path]]:
    release = write_release(tmp_path / "release")
    checkpoint = tmp_path / "checkpoint"
    assert convert(["moshi", "--model", str(release), "--out", str(checkpoint)]) == 0
    make(checkpoint, tmp_path / "repository", {"max_num_seqs": 2, "max_model_len": NUM_ROWS + 64})
    launch = Launch(tmp_path / "repository", tmp_path)
    launch.start()
    try:
        yield launch, checkpoint
    finally:
        launch.stop()


def metric(launch: Launch, name: str) -> float:
    with OPENER.open(f"http://localhost:{launch.metrics}/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    (value,) = [float(line.split()[-1]) for line in lines if line.startswith(f"stretto_{name}{{")]
    return value


async def talk(client: SpeechClient, pcm: np.ndarray) -> np.ndarray:
    """Send a recording frame by frame, as fast as the server accepts it; return text and codes of the reply [9, T]."""

    async def pieces() -> AsyncIterator[np.ndarray]:
        for at in range(0, len(pcm), FRAME):
            yield pcm[at : at + FRAME]

    events = client.talk(pieces(), RATE, seed=SEED, output={"codes": True})
    return np.concatenate([np.array(event.codes) async for event in events if event.codes is not None], 1)


def expected(checkpoint: Path, pcm: np.ndarray) -> np.ndarray:
    """Return the text and codes [9, T] of a reply to a complete recording, by an engine in this process."""
    from stretto.testing.conformance import Engine  # vllm reads the environment when it is imported

    codec = load_codec("mimi", checkpoint, num_codebooks=8)
    assert isinstance(codec, MimiCodec)
    vocabulary = MoshiVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    codes = MimiEncoder(codec).encode_all(pcm)
    written = first_row(vocabulary, tuple(user_ids(vocabulary).push(codes).reshape(-1).tolist()))
    family = family_at(checkpoint)
    sampling = replace(family.tasks[0].sampling, seed=SEED)
    prompt = Prompt("duplex", written.rows, sampling, delayed_tail=written.delayed_tail, track=written.track)
    engine = Engine(checkpoint, max_model_len=codes.shape[1] + 64, max_num_seqs=2)
    rows = engine.run({"r": prompt})["r"].rows
    engine.shutdown()
    ids = np.array(rows[:-1]) - np.array([ids_of_stream.start for ids_of_stream in family.layout.audio])
    return np.concatenate([ids[:-1, :2], ids[1:, 2:]], 1).T


async def test_twenty_minute_session_is_exact_with_bounded_memory(launched: tuple[Launch, Path]) -> None:
    """KV blocks are those of the attention window, and no row is computed again."""
    launch, checkpoint = launched
    assert CONFIG["context"] * 100 < NUM_ROWS
    pcm = audio(0, NUM_ROWS)
    pids = served_processes()
    rss_mb = list[dict[str, float]]()
    kv_usages = list[float]()

    async def watch() -> None:
        while True:
            usages = {name: read_usage(pid) for name, pid in pids.items()}
            rss_mb.append({name: usage.rss_mb for name, usage in usages.items() if usage is not None})
            kv_usages.append(await asyncio.to_thread(metric, launch, "kv_usage"))
            await asyncio.sleep(METRICS_S)

    async with SpeechClient(launch.address, Timeouts(first_s=7200, between_s=7200, total_s=7200)) as client:
        await talk(client, audio(1, 500))
        watching = asyncio.create_task(watch())
        codes = await talk(client, pcm)
        watching.cancel()
    np.testing.assert_array_equal(codes, await asyncio.to_thread(expected, checkpoint, pcm))
    assert metric(launch, "live_rows_recomputed_total") == 0
    quarter = max(1, len(rss_mb) // 4)
    assert 0 < max(kv_usages[-quarter:]) <= max(kv_usages[:quarter])
    for name in pids:
        growth_mb = max(sizes[name] for sizes in rss_mb[-quarter:]) - max(sizes[name] for sizes in rss_mb[:quarter])
        assert growth_mb < (MAX_TRITON_GROWTH_MB if name == "tritonserver" else MAX_GROWTH_MB), name
