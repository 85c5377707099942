"""VITA-Audio-Plus through the real server: prompts contain audio input as rows of SenseVoice features."""

import json
from collections.abc import Iterator

import pytest

from lab.releases import random_vita
from tests.encoders.recordings import speech
from tests.reference.vita_hearing import heard_by_plus
from tests.server.vita import NUM_IDS, ServedVita, serve

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day the engine's test and the other release's server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedVita]:
    with serve(tmp_path_factory.mktemp("plus"), random_vita.PLUS, heard_by_plus) as served:
        yield served


@pytest.mark.parametrize("schedule", ["balance", "boost", "turbo", "vanilla"])
def test_spoken_turns_are_answered_like_the_reference(served: ServedVita, schedule: str) -> None:
    turns = [{"role": "user", "text": "how are you?"}, {"role": "assistant", "text": "fine", "codes": [[1, 5, 9]]}]
    messages = json.dumps([*turns, {"role": "user", "audio": "pcm_in"}])
    said = {"messages": messages, "pcm_in": speech(1.5), "sample_rate": 16_000}
    served.speaks({"schedule": schedule}, {**said, "task": "dialogue"})


def test_vita_audio_plus_transcribes_speech(served: ServedVita) -> None:
    served.writes({}, {"pcm_in": speech(1.0), "sample_rate": 16_000, "task": "asr"})


def test_vita_audio_plus_speaks_and_answers_text(served: ServedVita) -> None:
    served.speaks({"text": {"max_rows": NUM_IDS, "temperature": 0.0}}, {"text": "how are you?", "task": "tts"})
    served.writes({}, {"messages": json.dumps([{"role": "user", "text": "how are you?"}]), "task": "chat"})
