"""Input and output through shared memory equal inline input and output."""

import asyncio
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stretto_client import RequestRefused, RingSize, SpeechClient
from stretto_client.voices import Audio
from tests.patience import PATIENCE_S
from tests.server.conftest import Server

pytestmark = pytest.mark.server


async def transcript(client: SpeechClient, audio: Audio) -> str:
    async with client.transcribe(audio) as events:
        return "".join([event.text async for event in events])


async def test_shared_memory_audio_transcribes_like_inline_audio(
    server: Server, regions: Callable[[], list[Path]]
) -> None:
    spoken = server.ask({"seed": 3}, text="The train leaves at nine.")
    pcm = np.asarray(spoken.pcm, np.float32)
    file = BytesIO()
    soundfile.write(file, pcm, 16_000, format="WAV")
    audios: list[Audio] = [(pcm, 16_000), file.getvalue()]
    address = f"localhost:{server.grpc}"
    async with SpeechClient(address) as inline, SpeechClient(address, shared_memory="system") as shared:
        for audio in audios:
            heard = await transcript(inline, audio)
            assert len(heard) > 8
            assert await transcript(shared, audio) == heard
    assert not regions()


async def speech(client: SpeechClient, seed: int, lag_s: float = 0.0, **options: Any) -> np.ndarray:
    pieces = []
    async with client.speak(f"Number {seed} rings.", seed=seed, max_audio_s=2.0, **options) as events:
        async for event in events:
            if event.pcm is not None:
                pieces.append(event.pcm)
            await asyncio.sleep(lag_s)
    return np.concatenate(pieces)


async def test_ring_samples_match_inline_responses_under_load(
    server: Server, regions: Callable[[], list[Path]]
) -> None:
    address, small = f"localhost:{server.grpc}", RingSize(slots=6, slot_bytes=8192)
    async with SpeechClient(address) as inline:
        expected = [await speech(inline, seed) for seed in range(8)]
        whole = await speech(inline, 1, output={"encoding": "pcm_s16le", "sample_rate": 24_000})
    async with SpeechClient(address, shared_memory="system", ring=small) as shared:
        lags = [0.0, 0.3, 0.0, 0.2, 0.0, 0.0, 0.1, 0.0]
        heard = await asyncio.gather(*(speech(shared, seed, lags[seed]) for seed in range(8)))
        for seed in range(8):
            np.testing.assert_allclose(heard[seed], expected[seed], atol=1e-4, err_msg=f"seed {seed}")
        coarse = await speech(shared, 1, output={"encoding": "pcm_s16le", "sample_rate": 24_000})
    assert coarse.dtype == whole.dtype == np.int16
    assert np.abs(coarse.astype(int) - whole).max() <= 4
    assert not regions()


async def test_stalled_shared_memory_reader_does_not_block_others(server: Server) -> None:
    address = f"localhost:{server.grpc}"
    async with SpeechClient(address, shared_memory="system", ring=RingSize(slots=3, slot_bytes=16384)) as shared:
        stuck = shared.speak("I never read this to the end, not at all.", seed=1)
        while (await anext(stuck)).pcm is None:
            pass
        await asyncio.sleep(1.0)
        async with SpeechClient(address) as other, asyncio.timeout(PATIENCE_S):
            assert len(await speech(other, 2)) > 8000
        await stuck.aclose()
    server.until(lambda: server.metric("active_utterances") == 0)


async def test_unknown_ring_name_is_refused(server: Server) -> None:
    async with SpeechClient(f"localhost:{server.grpc}") as client:
        output = {"ring": {"name": "stretto_ring_0000000000000000"}}
        with pytest.raises(RequestRefused, match=r"options.output.ring.name: expected shared memory of this host"):
            await speech(client, 1, output=output)
