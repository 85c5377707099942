"""Sixteen concurrent requests, each with its own answer."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.server.conftest import Server
from tests.server.listening import Answer

pytestmark = pytest.mark.server

WORDS = "one two three four five six seven eight nine ten garden door window green river morning".split()
TEXTS = [f"{WORDS[i]} {WORDS[(3 * i + 1) % 16]} {WORDS[(5 * i + 2) % 16]}"[: 12 + 2 * i] for i in range(16)]


def options(seed: int) -> dict[str, object]:
    return {"seed": seed, "max_audio_s": 1.6, "text": {"max_rows": 60}}


def test_sixteen_concurrent_streams_match_single_streams(server: Server) -> None:
    def speak(i: int) -> Answer:
        return server.ask(options(i), text=TEXTS[i])

    alone = [speak(i) for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(speak, range(16)))
    for one, other in zip(alone, together, strict=True):
        assert other.error is None
        assert other.text == one.text
        np.testing.assert_allclose(other.pcm, one.pcm, atol=1e-4)
        assert other.report["num_frames"] == other.report["guided_frames"] == one.report["num_frames"]
    assert len({answer.text for answer in together}) > 12
    assert len({answer.events[0]["utterance"] for answer in together}) == 16
    assert server.metric("unguided_total") == 0
    server.until(lambda: server.metric("engine_steps_total") > 500)
    assert server.metric("engine_rows_total") > server.metric("frames_total") > 0
    server.until(lambda: server.metric("running_requests") == server.metric("kv_usage") == 0)
