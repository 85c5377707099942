"""The waveform has the requested format, and is complete for any chunks."""

from typing import Any

import numpy as np
import pytest
import soxr

from tests.server.conftest import Server
from tests.server.listening import Answer

pytestmark = pytest.mark.server

SHORT: dict[str, Any] = {"seed": 7, "max_audio_s": 2.0}
SENTENCE = "the garden door is open"


@pytest.fixture(scope="module")
def plain(_server: Server) -> Answer:
    _server.start()
    return _server.ask(SHORT, text=SENTENCE)


def test_resampled_16_bit_output_matches_native_rate_output(plain: Answer, server: Server) -> None:
    other = server.ask(SHORT | {"output": {"encoding": "pcm_s16le", "sample_rate": 16_000}}, text=SENTENCE)
    assert other.error is None
    assert other.pcm.dtype == np.int16
    expected = np.clip(soxr.resample(plain.pcm, 24_000, 16_000), -1, 1) * 32_767
    assert len(other.pcm) == len(expected)
    assert np.abs(other.pcm - expected).max() < 4  # as near as two decodes in other chunks are
    assert {event["sample_rate"] for event in other.events} == {16_000}
    assert other.report["audio_s"] == pytest.approx(len(other.pcm) / 16_000)
    assert sum(event["duration_s"] for event in other.events) == pytest.approx(other.report["audio_s"])


@pytest.mark.parametrize(
    "chunking", [{"first_frames": 1, "steady_frames": 2}, {"steady_frames": 100, "playout_s": 1.0}]
)
def test_waveform_does_not_depend_on_chunking(plain: Answer, server: Server, chunking: dict[str, Any]) -> None:
    other = server.ask(SHORT | {"chunking": chunking}, text=SENTENCE)
    assert other.error is None
    np.testing.assert_allclose(other.pcm, plain.pcm, atol=1e-4)
    largest = max(len(response.pcm) for response in other.responses if response.pcm is not None)
    assert largest <= chunking["steady_frames"] * 900


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": {"encoding": "mp3"}}, "options.output.encoding: expected one of pcm_f32le, pcm_s16le, got 'mp3'"),
        ({"chunking": {"first_frames": 0}}, "options.chunking.first_frames: expected an integer in [1, 25], got 0"),
    ],
)
def test_unsupported_delivery_options_are_refused(server: Server, options: dict[str, Any], message: str) -> None:
    assert message in (server.ask(options, text=SENTENCE).error or "")
