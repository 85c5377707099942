"""Audio through shared memory says what it says inline."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from client import SpeechClient
from client.inputs import Audio
from tests.server.conftest import Server

pytestmark = pytest.mark.server


async def transcript(client: SpeechClient, audio: Audio) -> str:
    async with client.transcribe(audio) as events:
        return "".join([event.text async for event in events])


async def test_audio_in_shared_memory_is_heard_as_inline(server: Server) -> None:
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
    assert not list(Path("/dev/shm").glob("stretto_in_*"))
