"""Speech of the real server that the gateway has signed is verified by `stretto verify`, also after an alteration."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stretto.cli import verify
from stretto_client.manifest import FileSigner
from stretto_gateway.encoding import make_encoder
from tests.patience import PATIENCE_S
from tests.server.conftest import Server
from tests.server.openai_client import gateway_port
from tests.signing_certificates import chain

pytestmark = pytest.mark.server
TEXT = "Your flight to Lisbon leaves from gate twenty. [voice:alloy]Please have your passport ready."
RATE = 24_000


def encoded(pcm: np.ndarray, file_format: str) -> bytes:
    """Return samples, int16 [n], as a file."""
    encoder = make_encoder(file_format, RATE, {}, 32_000)
    return encoder.encode(pcm) + encoder.close()


def decoded(data: bytes) -> np.ndarray:
    """Return the samples of a file, int16 [n]."""
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler("s16", "mono", RATE)
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate([part.to_ndarray()[0] for part in (*frames, *resampler.resample(None))])


async def test_signed_speech_is_verified(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "flac", "stream": False}
    key = Ed25519PrivateKey.generate()
    async with (
        gateway_port(server.grpc, signing_key=key, file_signer=FileSigner(chain(key), key)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http,
    ):
        sent = await http.post("/v1/audio/speech", json=body)
        receipt = await http.get(f"/v1/audio/speech/{sent.headers['x-request-id']}/receipt")
        public = await http.get("/v1/audio/receipts/key")
    capsys.readouterr()
    (tmp_path / "receipt.json").write_bytes(receipt.content)
    (tmp_path / "key.json").write_bytes(public.content)

    async def findings(clip: bytes, *words: str) -> tuple[int, dict[str, Any]]:
        (tmp_path / "clip").write_bytes(clip)
        words = (str(tmp_path / "clip"), "--text", TEXT, "--key", str(tmp_path / "key.json"), *words)
        words += ("--server", f"localhost:{server.grpc}", "--json")
        status = await asyncio.to_thread(verify, list(words))
        output = capsys.readouterr()
        assert not output.err
        return status, json.loads(output.out)

    beside = ("--receipt", str(tmp_path / "receipt.json"))
    for words in (beside, ()):  # without it, by the receipt in the manifest
        status, found = await findings(sent.content, *words)
        assert (status, found["is_sent_file"], found["signature"]["is_trusted"]) == (0, True, True)
        assert found["codes"]["is_equal"]
        assert ("manifest" in found) == (words == ())
    pcm = decoded(sent.content)
    for file_format in ("mp3", "opus"):
        status, found = await findings(encoded(pcm, file_format), *beside)
        assert (status, found["is_sent_file"], found["passages"]) == (0, False, [])
    pcm[RATE : RATE + RATE // 2] = pcm[2 * RATE : 2 * RATE + RATE // 2]
    status, found = await findings(encoded(pcm, "mp3"), *beside)
    (passage,) = found["passages"]
    assert (status, passage["change"]) == (5, "replaced")
    assert passage["start_s"] == pytest.approx(1.0, abs=0.15)
    assert passage["end_s"] == pytest.approx(1.5, abs=0.15)
