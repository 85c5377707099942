"""The streamed-text benchmark uses equal texts and frames in all arms and measures from the first word."""

import argparse
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from benchmarks import live_text, loads
from stretto_client import SpeechEvent

FRAME_S = 0.08


class FakeClient:
    """Fake client that speaks a text in simulated time: 1 s, or 2 s if the words arrive one by one."""

    def __init__(self) -> None:
        self.asked: list[tuple[bool, str, dict[str, Any]]] = []
        self.clock = 0.0

    async def speak(self, text: str | AsyncIterator[str], **options: Any) -> AsyncIterator[SpeechEvent]:
        is_written = not isinstance(text, str)
        whole = "".join([piece async for piece in text]) if is_written else text
        self.asked.append((is_written, whole, options))
        self.clock += 2.0 if is_written else 1.0
        num_samples = round(options["audio"]["max_rows"] * FRAME_S * 24_000)
        pcm = np.full(num_samples, 0.5, np.float32)
        yield SpeechEvent(pcm, "u", 0, "audio", sample_rate=24_000, is_final=True)
        self.clock += 1.0


async def test_live_text_benchmark_compares_equal_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient()
    clock = argparse.Namespace(perf_counter=lambda: client.clock)
    monkeypatch.setattr(live_text, "time", clock)
    monkeypatch.setattr(loads, "time", clock)
    arguments = live_text.parse(["--rounds", "2", "--requests", "2", "--words-per-s", "100000"])
    record = await live_text.measure(client, 1, arguments)
    spoken = {arm: client.asked[3 + 2 * index :: 6][:2] for index, arm in enumerate(live_text.ARMS)}
    texts = {arm: [text for _, text, _ in asked] for arm, asked in spoken.items()}
    assert texts["at_once"] == texts["by_words"] == texts["at_pace"]
    assert {options.get("text_mode") for _, _, options in spoken["at_once"]} == {"streaming"}
    assert [is_written for asked in spoken.values() for is_written, _, _ in asked] == [False] * 2 + [True] * 4
    assert record["at_once_first_audio_p50"] == 1.0
    assert record["by_words_over_at_once"] == record["at_pace_over_at_once"] == 2.0
    assert record["at_once_audio_throughput"] == pytest.approx(40 * FRAME_S / 2, abs=1e-4)
    assert record["by_words_audio_throughput"] == pytest.approx(40 * FRAME_S / 3, abs=1e-4)


def test_live_text_pieces_join_to_the_text() -> None:
    text = "The train to Oslo leaves."
    assert "".join(live_text.words_of(text)) == text
    assert len(live_text.words_of(text)) == 5
