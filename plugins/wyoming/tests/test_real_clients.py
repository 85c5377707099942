"""Real clients of Wyoming against a real server with the bundled model, each in its own environment.

What they send is stored in data/, which test_wyoming.py sends by day. STRETTO_RECORD=1 rewrites it.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from plugins.wyoming.tests.line import events_in
from plugins.wyoming.tests.test_wyoming import recorded
from tests.clients.environments import ROOT, Client, Environment
from tests.clients.recording_proxy import RecordingProxy
from tests.clients.test_real_clients import fault, recording
from tests.patience import until, written
from tests.ports import free_row

__all__ = ["recording"]
pytestmark = [pytest.mark.server, pytest.mark.nightly]
FOLDER = Path(__file__).parent
# What its speech components import, beside its own requirements, in the versions of its constraints.
IMPORTED = (
    *("hassil==3.5.0", "home-assistant-intents==2025.12.2", "mutagen==1.47.0", "ha-ffmpeg==3.2.2", "numpy==2.3.2"),
    *("pymicro-vad==1.0.1", "pyspeex-noise==1.0.2"),
)
SPOKEN = ("voices", "streams", "speech", "speech of a written text", "transcript")
CLIENTS = {
    "wyoming": Client(
        Environment(("wyoming==1.10.2",)), FOLDER / "clients/wyoming_client.py", (*SPOKEN, "error", "ping")
    ),
    # It states 3.13.2 or later, but its code runs with 3.13.0, too.
    "home_assistant": Client(
        Environment(("homeassistant==2025.12.5", "wyoming==1.7.2", *IMPORTED, "--python-version=3.13.2"), "3.13"),
        FOLDER / "clients/home_assistant.py",
        (*SPOKEN, "services", "languages"),
    ),
}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Yield the ports of a gateway for the bundled model: HTTP and Wyoming."""
    folder = tmp_path_factory.mktemp("server")
    first = free_row(5)
    words = ["--pid-file", str(folder / "serve.json"), "--log-file", str(folder / "log"), "--gateway"]
    command = [sys.executable, "-m", "stretto", "serve", *words, "--wyoming", str(first + 4)]
    with (folder / "launcher").open("wb") as log:
        variables = os.environ | {"STRETTO_PORT": str(first)}
        launcher = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
    try:
        said = folder / "launcher"
        until(lambda: launcher.poll() is not None or "web page:" in written(said), "the server did not become ready")
        assert launcher.poll() is None, written(said)
        yield first + 3, first + 4
    finally:
        launcher.terminate()
        launcher.wait(120)


@pytest.fixture(scope="module")
def url(ports: tuple[int, int]) -> str:
    """URL of the gateway, for the fixture `recording`."""
    return f"http://127.0.0.1:{ports[0]}"


def session_of(sent: bytes, got: bytes) -> tuple[str, list[str]]:
    """Return the client's bytes with only its first audio, and the types of the events that it got, without repeats.

    It may leave before the last event, which repeats that the transcript is complete.
    """
    kept = list[tuple[str, bytes]]()
    for name, data in events_in(sent):
        if name != "audio-chunk" or kept[-1][0] != name:
            kept.append((name, data))
    names = [name for name, _ in events_in(got)]
    while names[-1] == "transcript-stop":
        names.pop()
    types = [name for index, name in enumerate(names) if names[:index][-1:] != [name]]
    return b"".join(data for _, data in kept).decode("latin-1"), types


@pytest.mark.parametrize("name", CLIENTS)
async def test_real_client_speaks_and_transcribes(
    name: str, ports: tuple[int, int], recording: Path, tmp_path: Path
) -> None:
    client = CLIENTS[name]
    proxy = RecordingProxy(f"http://127.0.0.1:{ports[1]}")
    place = urlsplit(await proxy.start())
    command = await asyncio.to_thread(client.command, f"tcp://{place.netloc}", recording, tmp_path)
    variables = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "clients")}
    with (tmp_path / "errors").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=errors, env=variables)
        printed, _ = await process.communicate()
    await proxy.stop()
    records = [json.loads(line) for line in printed.decode().splitlines() if line.startswith('{"step"')]
    results = {record["step"]: record for record in records}
    faults = {step: fault(results[step]) if step in results else "not reported" for step in client.steps}
    log = (tmp_path / "errors").read_text(errors="replace")
    assert not any(faults.values()), json.dumps(faults, indent=1) + log[-4000:]
    assert process.returncode == 0, log[-4000:]
    sessions = [session_of(sent, got) for sent, got in proxy.traffic()]
    if os.environ.get("STRETTO_RECORD"):
        lines = [json.dumps({"sent": sent, "got": got}) for sent, got in sessions]
        (FOLDER / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    assert sessions == recorded(name), "the client sends other events: run with STRETTO_RECORD=1"
