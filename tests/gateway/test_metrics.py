"""What is counted of an utterance, however it goes."""

from typing import Any

import numpy as np
import pytest

from stretto_client import SpeechEvent
from stretto_gateway.admission import Admission
from stretto_gateway.config import Limits
from stretto_gateway.metrics import SILENCE, Metrics
from stretto_gateway.sessions import Sessions

COUNTERS = ("audio_skipped", "audio_cut", "audio_left", "audio_continuity_ok")


def event(level: int = 8192, **fields: Any) -> SpeechEvent:
    pcm = np.full(2400, level, np.int16)
    return SpeechEvent(pcm, "u", 0, "audio", **{"sample_rate": 24_000} | fields)


def final(reason: str, level: int = 8192) -> SpeechEvent:
    return event(level, is_final=True, report={"finish_reason": reason})


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event(), final("stop")], {"audio_continuity_ok"}),
        ([event(), final("length")], {"audio_continuity_ok", "audio_cut"}),
        ([event(SILENCE), final("stop", -SILENCE)], {"audio_continuity_ok", "audio_skipped"}),
        ([event(SILENCE), final("length", 0)], {"audio_continuity_ok", "audio_skipped", "audio_cut"}),
        ([event(0), final("stop", -32768)], {"audio_continuity_ok"}),
        ([SpeechEvent(None, "u", 0, "tail", is_final=True, report={"finish_reason": "stop"})], {"audio_skipped"}),
        ([event()], {"audio_left"}),
        ([], {"audio_left"}),
    ],
)
def test_each_answer_is_counted_as_what_it_was(
    events: list[SpeechEvent], expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto_gateway.metrics.time.monotonic", lambda: 1.0)  # no chunk is late
    metrics = Metrics(Admission(1, 1), Sessions(Limits()), lambda: "tiny")
    trace = metrics.trace("tts")
    for each in events:
        trace.add(each)
    trace.close()
    labels = {"family": "tiny", "task": "tts"}
    counts = {name: metrics.registry.get_sample_value(f"{name}_total", labels) for name in COUNTERS}
    assert counts == {name: float(name in expected) for name in COUNTERS}
    num_first = metrics.registry.get_sample_value("audio_ttfp_seconds_count", labels)
    assert num_first == (1.0 if any(each.pcm is not None for each in events) else None)
