"""G.711 against ITU-T's reference formulas and known values, and in each endpoint that has it."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile

from stretto_gateway import g711
from stretto_gateway.encoding import wav_header
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Start
from tests.gateway.test_speech import REQUEST
from tests.gateway.test_transcription import WRITTEN

EVERY_SAMPLE = np.arange(-32_768, 32_768).astype(np.int16)
EVERY_BYTE = bytes(range(256))


def mulaw_byte(sample: int) -> int:
    """Return the byte of a sample by `ulaw_compress` of ITU-T G.191."""
    magnitude = min(((~sample if sample < 0 else sample) >> 2) + 33, 0x1FFF)
    segment = 0
    while magnitude >> (6 + segment):
        segment += 1
    step = (magnitude >> (1 + segment)) & 15
    return ~((0x80 if sample < 0 else 0) | segment << 4 | step) & 0xFF


def mulaw_sample(byte: int) -> int:
    """Return the sample of a byte by `ulaw_expand` of ITU-T G.191."""
    inverted = ~byte & 0xFF
    segment, step = inverted >> 4 & 7, inverted & 15
    magnitude = ((step << 1 | 33) << segment) - 33 << 2
    return -magnitude if inverted & 0x80 else magnitude


def alaw_byte(sample: int) -> int:
    """Return the byte of a sample by `alaw_compress` of ITU-T G.191."""
    magnitude = (~sample if sample < 0 else sample) >> 4
    if magnitude > 15:
        segment = 1
        while magnitude > 31:
            magnitude >>= 1
            segment += 1
        magnitude += (segment << 4) - 16
    return (magnitude | (0 if sample < 0 else 0x80)) ^ 0x55


def alaw_sample(byte: int) -> int:
    """Return the sample of a byte by `alaw_expand` of ITU-T G.191."""
    magnitude = (byte ^ 0x55) & 0x7F
    segment, step = magnitude >> 4, (magnitude & 15) << 4 | 8
    if segment:
        step = step + 256 << segment - 1
    return step if byte & 0x80 else -step


FORMULAS: dict[g711.Law, Any] = {"mulaw": (mulaw_byte, mulaw_sample), "alaw": (alaw_byte, alaw_sample)}
# Tables 1a, 1b, 2a and 2b of the Recommendation: the largest and the smallest values, on the scale of 16 bits.
KNOWN: dict[g711.Law, dict[int, int]] = {
    "mulaw": {0x00: -32_124, 0x7F: 0, 0x80: 32_124, 0xFF: 0, 0xFE: 8, 0xF0: 120, 0xEF: 132, 0x8F: 16_764},
    "alaw": {0x2A: -32_256, 0xAA: 32_256, 0xD5: 8, 0x55: -8, 0xD4: 24, 0xC5: 264, 0xF5: 528},
}


@pytest.mark.parametrize("law", g711.LAWS)
def test_g711_equals_the_reference_for_each_sample_and_byte(law: g711.Law) -> None:
    compress, expand = FORMULAS[law]
    assert g711.encode(law, EVERY_SAMPLE) == bytes(map(compress, EVERY_SAMPLE.tolist()))
    decoded = g711.decode(law, EVERY_BYTE)
    assert decoded.tolist() == [*map(expand, EVERY_BYTE)]
    assert {byte: decoded[byte] for byte in KNOWN[law]} == KNOWN[law]


@pytest.mark.parametrize(("law", "subtype"), [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_g711_wav_file_is_read_by_another_library(law: g711.Law, subtype: str) -> None:
    file = g711.wav_file(law, EVERY_BYTE[:-1])
    assert soundfile.info(io.BytesIO(file)).subtype == subtype
    pcm, rate = soundfile.read(io.BytesIO(file), dtype="int16")
    assert (rate, pcm.tolist()) == (8000, g711.decode(law, EVERY_BYTE[:-1]).tolist())


@pytest.mark.parametrize("law", g711.LAWS)
async def test_speech_in_g711_has_8_khz_unless_another_rate_is_refused(start: Start, law: g711.Law) -> None:
    running = await start(SPOKEN)
    async with running.http() as http:
        answer = await http.post("/v1/audio/speech", json=REQUEST | {"response_format": law, "sample_rate": None})
        assert (answer.status_code, answer.headers["x-sample-rate"]) == (200, "8000")
        assert answer.headers["content-type"] == g711.MEDIA_TYPES[law]
        assert answer.content == g711.encode(law, np.full(NUM_SAMPLES, 8192, np.int16))
        refused = await http.post("/v1/audio/speech", json=REQUEST | {"response_format": law, "sample_rate": 16_000})
    assert refused.json()["error"]["message"] == f"sample_rate: expected one of 8000 for {law}, got 16000"
    assert b'"sample_rate": 8000' in running.behind.requests[0]["options"]


@pytest.mark.parametrize(
    ("media_type", "law"),
    [
        ("audio/basic", "mulaw"),
        ("audio/PCMU;rate=8000", "mulaw"),
        ("audio/x-mulaw", "mulaw"),
        ('audio/PCMA; rate="8000"; channels=1', "alaw"),
        ("audio/wav", None),
        ("", None),
    ],
)
async def test_g711_upload_gets_a_header(start: Start, media_type: str, law: g711.Law | None) -> None:
    running = await start(WRITTEN)
    wav = wav_header(8000, 2) + b"\0\0"
    async with running.http() as http:
        for content, expected in ((EVERY_BYTE, g711.wav_file(law, EVERY_BYTE) if law else EVERY_BYTE), (wav, wav)):
            file = ("call", content, media_type)
            answer = await http.post("/v1/audio/transcriptions", files={"file": file})
            assert answer.status_code == 200, answer.text
            assert running.behind.requests[-1]["audio"] == expected


@pytest.mark.parametrize("parameter", ["rate=16000", "channels=2", "rate"])
async def test_g711_upload_of_another_rate_is_refused(start: Start, parameter: str) -> None:
    running = await start(WRITTEN)
    async with running.http() as http:
        file = ("call", EVERY_BYTE, f"audio/PCMU;{parameter}")
        answer = await http.post("/v1/audio/transcriptions", files={"file": file})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("file: expected audio/pcmu with ")
    assert not running.behind.requests
