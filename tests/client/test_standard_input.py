"""Text from a pipe is spoken while it is being written; a file is read completely first."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from stretto_client.__main__ import pieces_from
from tests.client.test_live_speech import Live
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


async def start(address: str, folder: Path, stdin: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stretto_client", "speak", "-", "--out", "out.wav", "--server", address),
        cwd=folder,
        env={"PYTHONPATH": f"{ROOT / 'contract'}:{ROOT / 'client'}", "PATH": "/nowhere"},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_piped_input_is_sent_while_it_is_written(tmp_path: Path) -> None:
    live = Live()
    process = await start(await live.server.start(), tmp_path, asyncio.subprocess.PIPE)
    assert process.stdin is not None
    async with asyncio.timeout(PATIENCE_S):
        process.stdin.write("Grüße ".encode()[:3])
        while live.text != "Gr":  # half a character is kept until its rest arrives
            await asyncio.sleep(0.01)
        process.stdin.write("Grüße ".encode()[3:])
        while live.text != "Grüße ":
            await asyncio.sleep(0.01)
        process.stdin.write(b"world.")
        process.stdin.close()
        out, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert out.startswith(b"out.wav: 0.04 s of audio")
    assert live.text == "Grüße world."
    await live.server.stop()


async def test_text_file_on_stdin_is_sent_as_one_request(tmp_path: Path) -> None:
    live = Live()
    live.complete.set()
    (tmp_path / "text").write_text("Hello world.")
    with (tmp_path / "text").open() as text:
        process = await start(await live.server.start(), tmp_path, text.fileno())
        async with asyncio.timeout(PATIENCE_S):
            await process.communicate()
    assert process.returncode == 0
    assert "text_mode" not in json.loads(live.server.requests[0].get("options", "{}"))
    assert (live.text, live.parts) == ("Hello world.", [])
    await live.server.stop()


async def test_empty_and_undecodable_input_are_refused_in_one_line(tmp_path: Path) -> None:
    for given, message in ((b"", b"at least one character"), (b"\xff", b"can't decode byte 0xff")):
        live = Live()
        process = await start(await live.server.start(), tmp_path, asyncio.subprocess.PIPE)
        async with asyncio.timeout(PATIENCE_S):
            out, errors = await process.communicate(given)
        assert (process.returncode, out) == (2, b"")
        assert errors.startswith(b"error: ")
        assert message in errors
        assert errors.count(b"\n") == 1
        await live.server.stop()


async def test_unreadable_descriptor_raises_an_os_error(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        _ = [piece async for piece in pieces_from(descriptor)]
    os.close(descriptor)
