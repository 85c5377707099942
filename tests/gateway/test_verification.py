"""`/v1/audio/verify`: the findings of `stretto verify`, errors, and the end of the process with its request."""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stretto_client.manifest import FileSigner
from stretto_client.signature import key_id
from stretto_gateway import verification
from stretto_gateway.config import Limits
from stretto_gateway.encoding import SYNTHETIC, make_encoder
from tests.gateway.conftest import Start
from tests.gateway.test_transcription import FILE, PCM
from tests.patience import until_async
from tests.signing_certificates import chain

MARK = {"detector": None, "verdict": "not checked"}
FOUND = {"metadata": {"digital_source_type": None}, "mark": MARK, "manifest": None}
KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def command(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Replace `stretto verify` by a short program."""
    monkeypatch.setattr(verification, "COMMAND", (sys.executable, "-c", program))


@pytest.mark.slow
async def test_file_of_the_gateway_has_its_tag_and_its_manifest(start: Start) -> None:
    encoder = make_encoder("mp3", 16_000, SYNTHETIC)
    data = encoder.encode(np.frombuffer(PCM, np.int16)) + encoder.close()
    data = FileSigner(chain(KEY), KEY).sign(data, "mp3", b"{}")
    async with (await start(strict=True)).http() as http:
        answer = await http.post("/v1/audio/verify", files={"file": ("a.mp3", data)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["metadata"] == {"digital_source_type": SYNTHETIC["DIGITALSOURCETYPE"]}
    assert answer.json()["mark"]["verdict"] in ("not checked", "nothing to judge")
    key = key_id(KEY.public_key())
    assert answer.json()["manifest"] == {"signer": "Speech server, Readers", "key": key, "failures": []}


@pytest.mark.parametrize(
    ("program", "status", "message"),
    [
        (
            "import sys; print('stretto verify: the detector is not installed', file=sys.stderr); "
            "print('stretto verify: -: file: expected at most 600 s, got 700 s', file=sys.stderr); sys.exit(2)",
            400,
            "file: expected at most 600 s, got 700 s",
        ),
        ("raise ValueError", 500, "the program that verifies files failed"),
    ],
)
async def test_failures_are_reported(
    start: Start, monkeypatch: pytest.MonkeyPatch, program: str, status: int, message: str
) -> None:
    command(monkeypatch, program)
    async with (await start()).http() as http:
        answer = await http.post("/v1/audio/verify", files={"file": FILE})
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)


async def test_environment_of_the_reading_process_has_no_secrets(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_API_KEYS", "a-key-of-this-gateway")
    monkeypatch.setenv("HF_TOKEN", "a-key-of-this-gateway")
    monkeypatch.setenv("STRETTO_LAUNCH_ID", "launch")
    found = "{'metadata': {'digital_source_type': None}, 'mark': dict(os.environ), 'manifest': None}"
    command(monkeypatch, f"import json, os, sys; sys.stdin.read(); print(json.dumps({found}))")
    async with (await start()).http() as http:
        answer = await http.post("/v1/audio/verify", files={"file": FILE})
    assert {"PATH", "STRETTO_LAUNCH_ID"} <= answer.json()["mark"].keys()
    assert "a-key-of-this-gateway" not in answer.text


async def test_process_ends_with_its_request_and_others_wait(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One file at a time; a client that has left frees its place; the queue has an end."""
    pids = tmp_path / "pids"
    command(
        monkeypatch,
        f"import os, sys, time, json\ndata = sys.stdin.buffer.read()\n"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        f"time.sleep(1000 * (b'slow' in data))\nprint(json.dumps({FOUND!r}))",
    )
    running = await start(limits=Limits(drain_s=1, max_verifying=2))

    def ask(http: httpx.AsyncClient, data: bytes) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(http.post("/v1/audio/verify", files={"file": ("a", data)}))

    async with running.http() as http:
        slow = ask(http, b"slow")
        await until_async(lambda: pids.exists() and pids.read_text().endswith("\n"))
        pid = int(pids.read_text())
        waiting = ask(http, b"quick")
        gateway = running.app.state.gateway
        await until_async(lambda: gateway.verifying.num_waiting == 1)
        assert (await ask(http, b"one too many")).status_code == 429
        slow.cancel()
        with suppress(asyncio.CancelledError):
            await slow
        assert (await waiting).json() == FOUND
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
