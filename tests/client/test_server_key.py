"""The key of a local server is found by its port, and sent to no other server."""

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto_client import SpeechClient, client
from stretto_client.client import CALLER_HEADER, HEADER, key_headers
from tests.client.fake_server import Chunk, FakeServer, Step, Taken, Until
from tests.patience import until_async


def leave(directory: Path, launch: str, key: str) -> Path:
    folder = directory / f"stretto_launch_{launch}.run"
    folder.mkdir(mode=0o700)
    path = folder / "key-8001"
    path.touch(0o600)
    path.write_text(key)
    return path


@pytest.mark.parametrize(
    ("server", "mode", "folder_mode", "is_sent"),
    [
        *((server, 0o600, 0o700, True) for server in ("localhost:8001", "127.0.0.1:8001", "[::1]:8001")),
        *((server, 0o600, 0o700, False) for server in ("localhost:8002", "10.0.0.1:8001", "example.org:8001")),
        *((server, 0o600, 0o700, False) for server in ("localhost", "x:8001")),
        *(("localhost:8001", mode, 0o700, False) for mode in (0o644, 0o620)),
        ("localhost:8001", 0o600, 0o755, False),
    ],
)
def test_key_is_sent_to_its_local_server_only_and_if_it_is_private(
    tmp_path: Path, server: str, mode: int, folder_mode: int, is_sent: bool
) -> None:
    key = leave(tmp_path, "1_a", "open sesame")
    key.chmod(mode)
    key.parent.chmod(folder_mode)
    assert key_headers(server, tmp_path) == ({HEADER: "open sesame"} if is_sent else {})


def test_server_key_of_the_latest_start_is_used(tmp_path: Path) -> None:
    leave(tmp_path, "1_a", "of a launcher that died")
    late = leave(tmp_path, "2_b", "open sesame")
    os.utime(late, ns=(late.stat().st_mtime_ns + 10**9,) * 2)
    assert key_headers("localhost:8001", tmp_path) == {HEADER: "open sesame"}


def test_key_removed_during_reading_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, "1_a", "open sesame")

    def ours_until_now(path: Path) -> bool:
        path.unlink()
        return True

    monkeypatch.setattr(client, "ours", ours_until_now)
    assert key_headers("localhost:8001", tmp_path) == {}


async def pieces() -> AsyncIterator[np.ndarray]:
    yield np.zeros(2000, np.int16)


@pytest.mark.parametrize("is_here", [True, False])
async def test_client_ids_are_sent_only_to_a_local_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    """Both streams of a live session name its caller, by a digest."""

    def script(request: dict[str, Any]) -> list[Step]:
        return [Taken(0)] if "session" in request else [Chunk(0, None, session="s"), Until(done), last]

    done, last = asyncio.Event(), Chunk(1, None, is_final=True, is_last=True)
    server, callers = FakeServer(script), list[str]()
    address = await server.start()
    if is_here:
        path = leave(tmp_path, "1_a", "open sesame")
        path.rename(path.with_name(f"key-{address.rpartition(':')[2]}"))
    monkeypatch.setattr("stretto_client.client.key_headers", partial(key_headers, directory=tmp_path))
    async with SpeechClient(address, caller=lambda: callers[-1]) as client:
        for caller in ("mia", "tom"):
            callers.append(caller)
            done.clear()
            async for _ in client.transcribe_live(pieces(), 24_000):
                await until_async(lambda: len(server.metadata) % 2 == 0)
                done.set()
    named = [metadata.get(CALLER_HEADER) for metadata in server.metadata]
    if is_here:
        assert named[0] == named[1] != named[2] == named[3]
        assert all(name and name not in ("mia", "tom") for name in named)
        assert all(metadata[HEADER] == "open sesame" for metadata in server.metadata)
    else:
        assert named == [None] * 4
    await server.stop()
