"""Audio through shared memory, which is freed afterwards."""

import errno
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from stretto.records.sampling import RingAddress
from stretto.triton_io.cuda_ring import CudaRings
from stretto.triton_io.ring import PcmRing
from stretto_client import ServerUnavailable, SpeechClient
from stretto_client import shared_memory as ring_module
from stretto_client.shared_memory import RingSize
from stretto_contract.schema import Memory
from tests.client.fake_server import Chunk, FakeServer, Pause, Step
from tests.cuda_runtime import FakeCuda, install_for
from tests.patience import until_async

ANSWER = [Chunk(0, None, text="a cat"), Chunk(1, None, is_final=True, is_last=True)]
PCM = np.linspace(-1, 1, 4000, dtype=np.float32)


Regions = Callable[[], list[Path]]


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return install_for(monkeypatch)


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    made = FakeServer(lambda _: list(script))
    script: list[Step] = list(ANSWER)
    made.steps = script
    made.address = await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("memory", ["system", "cuda"])
async def test_shared_memory_audio_is_delivered_and_freed(
    server: FakeServer, cuda: FakeCuda, regions: Regions, memory: Memory
) -> None:
    async with SpeechClient(server.address, shared_memory=memory) as client:
        text = "".join([event.text async for event in client.transcribe((PCM, 16_000))])
        assert text == "a cat"
        again = [event async for event in client.transcribe(b"a whole file")]
        assert again[-1].is_final
        turns = [{"role": "user", "audio": "audio"}] * 2
        assert [event async for event in client.converse(turns, b"a whole file", b"and another")][-1].is_final
    samples, file, files = server.requests
    assert cuda.runtime.device == -1, "inputs are in system memory: Triton would open those on a GPU"
    np.testing.assert_array_equal(samples["pcm_in"], PCM)
    assert samples["sample_rate"] == 16_000
    assert file["audio"] == b"a whole file"
    assert files["audio"].tolist() == [b"a whole file", b"and another"]
    assert not server.regions
    assert not regions()


@pytest.mark.parametrize("ending", ["cancelled", "dropped", "left open"])
async def test_abandoned_utterance_frees_its_shared_memory(server: FakeServer, regions: Regions, ending: str) -> None:
    server.steps[1:1] = [Pause(120)]
    async with SpeechClient(server.address, shared_memory="system") as client:
        stream = client.transcribe((PCM, 16_000))
        await anext(stream)
        assert len(regions()) == len(server.regions) == 1
        if ending == "cancelled":
            await stream.aclose()
        elif ending == "dropped":
            del stream
        if ending != "left open":
            await until_async(lambda: not regions())
    assert not regions()
    assert not server.regions


async def test_stopped_server_leaves_no_client_shared_memory(server: FakeServer, regions: Regions) -> None:
    client = SpeechClient(server.address, shared_memory="system")
    server.steps[1:1] = [Pause(5)]
    stream = client.transcribe((PCM, 16_000))
    await anext(stream)
    await server.stop()
    await client.close()
    assert not regions()


@pytest.mark.parametrize("memory", ["system", "cuda"])
async def test_cancelled_utterance_frees_its_ring_while_the_server_has_it_open(
    server: FakeServer, cuda: FakeCuda, regions: Regions, memory: Memory
) -> None:
    server.steps[1:1] = [Pause(120)]
    client, rings = SpeechClient(server.address, shared_memory=memory), CudaRings("cuda")
    stream = client.speak("a cat")
    await anext(stream)
    [request] = server.requests
    opened = PcmRing.open(RingAddress(**json.loads(request["options"])["output"]["ring"]), rings)
    await stream.aclose()
    await client.close()
    assert not regions()
    assert opened.put(PCM[:16]) is not None
    opened.close()
    assert cuda.is_unused


def test_unknown_shared_memory_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="shared_memory: expected 'system' or 'cuda', got 'disk'"):
        SpeechClient(shared_memory="disk")


@pytest.mark.parametrize("size", [(0, 64), (4, 0), (4, 60)])
def test_ring_slot_size_must_be_a_multiple_of_eight_bytes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"multiple of 8 bytes, got {size[0]} of {size[1]}"):
        RingSize(*size)


async def test_full_shared_memory_fails_only_the_request(
    server: FakeServer, regions: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, offset: int, byte_size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fail)
    async with SpeechClient(server.address, shared_memory="system") as client:
        with pytest.raises(ServerUnavailable, match=r"^not enough shared memory for \d+ bytes: No space left"):
            [event async for event in client.speak("hello")]
    assert not regions()


@pytest.mark.parametrize("reason", [errno.ENOENT, errno.EROFS, errno.EACCES])
async def test_missing_or_unwritable_shared_memory_is_one_error(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason), "/stretto_in_1")

    monkeypatch.setattr(ring_module, "SharedMemory", fail)
    message = f"^cannot create shared memory in /dev/shm: {os.strerror(reason)}$"
    async with SpeechClient(server.address, shared_memory="system") as client:
        with pytest.raises(ServerUnavailable, match=message):
            await anext(client.speak("a"))
        with pytest.raises(ServerUnavailable, match=message):
            client.transcribe(b"a file")
