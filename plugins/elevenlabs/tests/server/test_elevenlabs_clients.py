"""ElevenLabs' own packages, and ElevenLabs' services of frameworks, against a real server with the bundled model.

Only the base URL is changed. The requests are stored in plugins/elevenlabs/tests/data/client_requests.json, which the
test of the day tier sends. STRETTO_RECORD=1 rewrites that file.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.environments import Client, Environment
from tests.clients.recording_proxy import RecordingProxy
from tests.clients.test_real_clients import compare, recording, requests_of, url

__all__ = ["recording", "url"]
pytestmark = [pytest.mark.server, pytest.mark.nightly]
FOLDER = Path(__file__).parents[1]
KEPT = FOLDER / "data" / "client_requests.json"
REPORT = FOLDER.parents[2] / "tests" / "clients"  # of the module `report`
CLIENTS = {
    "elevenlabs (Python)": Client(
        Environment(("elevenlabs==2.78.0",)),
        FOLDER / "clients" / "sdk_python.py",
        (
            *("convert", "stream", "convert opus_48000_64", "convert wav_24000", "convert mp3_22050_32"),
            *("convert_with_timestamps", "characters", "ends", "stream_with_timestamps", "streamed characters"),
            *("convert_realtime", "voices", "voice of the list", "models"),
            *("unknown voice", "unknown format", "unknown voice in real time"),
        ),
    ),
    "elevenlabs (Node)": Client(
        Environment(("@elevenlabs/elevenlabs-js@2.73.0",), "node"),
        FOLDER / "clients" / "sdk_node.mjs",
        (
            *("convert", "stream", "convertWithTimestamps", "characters", "streamWithTimestamps"),
            *("streamed characters", "voices", "models", "unknown voice"),
        ),
    ),
    "LiveKit Agents": Client(
        Environment(("livekit-agents==1.8.9", "livekit-plugins-elevenlabs==1.8.9")),
        FOLDER / "clients" / "livekit_plugin.py",
        ("synthesize", "stream", "second stream", "list_voices", "mp3"),
    ),
    "Pipecat": Client(
        Environment(("pipecat-ai[elevenlabs]==1.14.0",), "3.12"),
        FOLDER / "clients" / "pipecat_service.py",
        tuple(
            f"{service}{step}"
            for service in ("ElevenLabsTTSService", "ElevenLabsHttpTTSService")
            for step in ("", ": words", ": interrupted")
        ),
    ),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a key and a certificate for the proxy's address into one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("certificate") / "proxy.pem"
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(path), "-out", str(path.with_suffix(".crt")))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *name], check=True)
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.mark.parametrize("name", CLIENTS)
async def test_elevenlabs_clients_need_only_another_url(
    name: str, url: str, recording: Path, certificate: Path, tmp_path: Path
) -> None:
    proxy = RecordingProxy(url, certificate if name == "elevenlabs (Python)" else None)
    variables = {"PYTHONPATH": str(REPORT), "SSL_CERT_FILE": str(certificate.with_suffix(".crt"))}
    compare(name, await requests_of(CLIENTS[name], proxy, recording, tmp_path, **variables), KEPT)
