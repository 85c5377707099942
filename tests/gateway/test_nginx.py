"""The configuration for nginx in docs/production.md, with nginx itself."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import websockets

from tests.client.fake_server import Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Running, Start
from tests.patience import PATIENCE_S
from tests.ports import free_ports

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = [pytest.mark.nightly, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

PAGE = Path(__file__).parents[2] / "docs" / "production.md"
PING_S = 20  # of the gateway; see docs/production.md


def configuration(folder: Path, port: int, gateway: str, read_timeout: str) -> str:
    """Return the configuration of the page for other ports, without TLS, and with files in a folder."""
    (text,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    changes = {
        "server 127.0.0.1:8003;": f"server {gateway};",
        "listen 443 ssl;": f"listen 127.0.0.1:{port};",
        "proxy_read_timeout 660s;": f"proxy_read_timeout {read_timeout};",
    }
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    text = re.sub(r"ssl_certificate\w* .*;", "", text)
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {folder}/{name};\n" for name in names)
    user = "user root;\n" if folder.owner() == "root" else ""
    head = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\nevents {{}}\n"
    return f"{user}{head}http {{\naccess_log off;\n{paths}{text}}}\n"


@asynccontextmanager
async def nginx_before(running: Running, folder: Path, read_timeout: str = "660s") -> AsyncIterator[str]:
    """Yield the host and port of nginx in front of a gateway."""
    assert NGINX is not None
    (port,) = free_ports(1)
    file = folder / "nginx.conf"
    file.write_text(configuration(folder, port, running.url.removeprefix("http://"), read_timeout), encoding="utf-8")
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(file)])
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await is_open(port):
                assert process.poll() is None, (folder / "error.log").read_text(encoding="utf-8")
                await asyncio.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


async def is_open(port: int) -> bool:
    """Return True if a local port accepts a connection."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_audio_passes_nginx_as_it_is_generated(start: Start, tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    running = await start([SPOKEN[0], Until(goes_on), *SPOKEN[1:]])
    body = {"input": "A cat.", "response_format": "pcm"}
    async with (
        nginx_before(running, tmp_path) as place,
        httpx.AsyncClient(timeout=PATIENCE_S) as http,
        http.stream("POST", f"http://{place}/v1/audio/speech", json=body) as answer,
    ):
        parts = answer.aiter_raw()
        audio = await anext(parts)
        goes_on.set()  # only now does the model go on, so nginx has not waited for more
        async for part in parts:
            audio += part
    assert audio == b"\x00\x20" * NUM_SAMPLES


async def test_nginx_reuses_its_connections_to_the_gateway(start: Start, tmp_path: Path) -> None:
    running = await start()
    async with nginx_before(running, tmp_path) as place:
        for _ in range(5):  # each from a client of its own
            async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
                assert (await http.get(f"http://{place}/health/live")).status_code == 200
        assert len(running.server.server_state.connections) == 1


async def test_gateways_own_refusal_of_a_large_body_passes_nginx(start: Start, tmp_path: Path) -> None:
    running = await start()
    large = b"\0" * (running.app.state.gateway.limits.max_body_bytes + 1)
    async with nginx_before(running, tmp_path) as place, httpx.AsyncClient(timeout=PATIENCE_S) as http:
        form = {"files": {"file": ("a.wav", large)}, "data": {"model": "whisper-1"}}
        answer = await http.post(f"http://{place}/v1/audio/transcriptions", **form)
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_silent_session_outlasts_the_timeout_of_nginx(start: Start, tmp_path: Path) -> None:
    running = await start()
    url = "ws://{}/v1/realtime?model=tiny"
    async with (
        nginx_before(running, tmp_path, f"{PING_S + 5}s") as place,
        websockets.connect(url.format(place), ping_interval=None) as session,
    ):
        assert "session.created" in str(await session.recv())
        await asyncio.sleep(2 * PING_S)  # longer than nginx waits for a byte
        await session.send('{"type": "input_audio_buffer.clear"}')
        async with asyncio.timeout(PATIENCE_S):
            assert "input_audio_buffer.cleared" in str(await session.recv())
