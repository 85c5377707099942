"""The bundled model transcribes its own speech: a skipped word is found, and spoken if it was held back."""

from dataclasses import replace
from typing import Any

import pytest

from stretto_client import ModelProfile, SpeechClient, SpeechStream
from stretto_contract.speech_checks import USUAL_SIGNALS
from tests.server.conftest import Server

pytestmark = pytest.mark.server
TEXT = "Your flight to Lisbon leaves from gate twenty"


class SkippingClient(SpeechClient):
    """Client whose first attempt to speak a text lacks a word."""

    num_spoken = 0

    async def profile(self) -> ModelProfile:
        """Return the profile without the pace, by which the missing word would be noticed, too."""
        return replace(await super().profile(), signals=USUAL_SIGNALS)

    def speak_once(self, task: str, options: Any, text: str, **arguments: Any) -> SpeechStream:
        self.num_spoken += 1
        if self.num_spoken == 1:
            text = text.replace("Lisbon ", "")
        return super().speak_once(task, options, text, **arguments)


@pytest.mark.parametrize("hold_s", [0.0, 20.0])
async def test_skipped_word_is_found_and_spoken_if_it_was_held_back(server: Server, hold_s: float) -> None:
    async with SkippingClient(f"localhost:{server.grpc}") as client:
        options: Any = {"check": "words", "check_with": "self", "hold_s": hold_s, "seed": 1}
        first = [event async for event in client.speak(TEXT, **options)]
        second = [event async for event in client.speak(TEXT, **options)]
    reports = [events[-1].report or {} for events in (first, second)]
    faults = [[fault["fault"] for fault in report["faults"]] for report in reports]
    assert faults == ([["words"], []] if hold_s == 0 else [[], []])
    assert [report["redrawn"] for report in reports] == ([0, 0] if hold_s == 0 else [1, 0])
    assert not any("unchecked" in report for report in reports)
    assert ["lisbon" in text for text in reports[0].get("transcripts", ())] == [False] * (hold_s == 0)
