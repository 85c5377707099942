"""Calls are ended if there are too many or they hold too much memory."""

import asyncio
from contextlib import ExitStack

import grpc
import pytest

from stretto.proxy import triton_stream as uploads_module
from stretto.proxy.triton_stream import ENDED, KEPT_BYTES, Upload, Uploads
from tests.client.fake_server import Chunk, FakeServer
from tests.patience import PATIENCE_S
from tests.proxy.conftest import grpc_server, proxy_config
from tests.proxy.test_grpc_proxy import TEXT, call, request, service_pb2

METHODS = [f"/inference.GRPCInferenceService/{name}" for name in ("ModelStreamInfer", "ModelInfer", "ServerReady")]


def entered(uploads: Uploads, stack: ExitStack, *num_sent: int, host: str = "a") -> list[Upload]:
    made = [Upload(lambda: None, host, sent, since) for since, sent in enumerate(num_sent)]
    for upload in made:
        stack.enter_context(uploads.entry(upload))
    return made


def test_excess_uploads_end_the_oldest_incomplete_one() -> None:
    with ExitStack() as stack:
        made = entered(Uploads(max_calls=3), stack, 1, 0, 0, 2, 0, 0)
    assert [upload.is_ended for upload in made] == [False, True, True, False, True, False]


def test_longest_silent_upload_is_ended_if_all_have_sent_messages() -> None:
    with ExitStack() as stack:
        uploads = Uploads(max_calls=2)
        made = entered(uploads, stack, 1, 1)
        made[0].note_message()
        made.append(Upload(lambda: None, "a", 1))
        stack.enter_context(uploads.entry(made[2]))
    assert [upload.is_ended for upload in made] == [False, True, False]


def test_new_upload_replaces_the_oldest_and_is_kept() -> None:
    with ExitStack() as stack:
        made = entered(Uploads(max_calls=2), stack, 1, 1, 0)
    assert [upload.is_ended for upload in made] == [True, False, False]


def test_excess_uploads_end_those_of_the_host_with_the_most() -> None:
    uploads = Uploads(max_calls=9)
    with ExitStack() as stack:
        first, second = entered(uploads, stack, 1, 0, 0, host="a"), entered(uploads, stack, 1, 0, host="b")
        entered(uploads, stack, *[1] * 500, host="c")
        late = entered(uploads, stack, 0, host="b")
        assert not any(upload.is_ended for upload in first + second + late)
        entered(uploads, stack, *[0] * 500, host="a")
        assert not any(upload.is_ended for upload in second + late)


@pytest.mark.slow
def test_memory_pressure_ends_incomplete_uploads_first() -> None:
    held = [50, 101, 101, 101, 101]
    uploads = Uploads(max_resident_bytes=100, resident=lambda: held.pop(0))
    with ExitStack() as stack:
        busy, silent = entered(uploads, stack, *[1] * 8, host="a"), entered(uploads, stack, 0, host="b")
        uploads.poll()
        assert [upload.is_ended for upload in busy + silent] == [False] * 8 + [True]
        uploads.poll()
        assert [upload.is_ended for upload in busy] == [True] * 3 + [False] * 5


@pytest.mark.slow
def test_uploads_are_ended_only_while_memory_exceeds_the_limit() -> None:
    held = [50, 100, 101, 101, 101, 100]
    uploads = Uploads(max_resident_bytes=100, resident=lambda: held.pop(0))
    with ExitStack() as stack:
        made = entered(uploads, stack, *[0] * 8)
        uploads.poll()
        assert not any(upload.is_ended for upload in made)
        uploads.poll()
        assert [upload.is_ended for upload in made] == [True] * 3 + [False] * 5
        uploads.poll()  # malloc has returned the excess
        assert [upload.is_ended for upload in made] == [True] * 3 + [False] * 5
    assert not held


def test_upload_memory_is_returned_when_uploads_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_back: list[int] = []
    held = [50]
    monkeypatch.setattr(uploads_module, "give_back", lambda: gave_back.append(held[-1]))
    monkeypatch.setattr(uploads_module, "NUM_CHECKS", 2)
    uploads = Uploads(resident=lambda: held[-1])
    for _ in range(4):
        held.append(held[-1] + KEPT_BYTES)
        uploads.poll()
    assert not gave_back  # for more was there each time
    uploads.poll()
    assert gave_back == held[-1:]  # which are in use still
    uploads.poll()
    assert gave_back == held[-1:]
    uploads.poll()
    assert gave_back == [held[-1]] * 2
    held.append(50 + KEPT_BYTES)
    for _ in range(4):
        uploads.poll()
    assert gave_back == [held[-2]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
async def test_call_ended_for_memory_reports_reason_and_spares_others(method: str) -> None:
    triton = FakeServer(lambda _: [Chunk(0, is_final=True, is_last=True)])
    uploads, config = Uploads(resident=lambda: 1 << 40), proxy_config()
    address = f"127.0.0.1:{config.grpc_port}"
    async with grpc.aio.insecure_channel(await triton.start()) as channel, asyncio.timeout(PATIENCE_S):
        server = grpc_server(config, channel, uploads=uploads)
        await server.start()
        async with grpc.aio.insecure_channel(address) as client:
            unfinished = client.stream_stream(method)()
            await unfinished.wait_for_connection()
            while not unfinished.done():
                uploads.poll()
                await asyncio.sleep(0.01)
            assert (await unfinished.code(), await unfinished.details()) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                ENDED,
            )
        assert (await call(address, "ServerReady", service_pb2.ServerReadyRequest())).ready
        await server.stop(0)
    await triton.stop()


@pytest.mark.slow
async def test_fully_sent_stream_is_not_ended_for_memory() -> None:
    triton = FakeServer(lambda _: [Chunk(0, is_final=True, is_last=True)])
    uploads, config = Uploads(resident=lambda: 1 << 40), proxy_config()
    async with grpc.aio.insecure_channel(await triton.start()) as channel, asyncio.timeout(PATIENCE_S):
        server = grpc_server(config, channel, uploads=uploads)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{config.grpc_port}") as client:
            stream = client.stream_stream(METHODS[0])()
            await stream.write(request(raw=TEXT).SerializeToString())
            await stream.done_writing()
            assert await stream.read() is not grpc.aio.EOF
            uploads.poll()
            while await stream.read() is not grpc.aio.EOF:
                pass
            assert await stream.code() is grpc.StatusCode.OK
        await server.stop(0)
    await triton.stop()
