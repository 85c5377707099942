"""VITA-Audio through the real server (release, converter, repository, server, client): text and speech in a reply."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lab.releases import random_vita
from stretto.encoders.whisper_vq import load_tokenizer
from tests.encoders.recordings import speech
from tests.server.vita import NUM_IDS, ServedVita, serve

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day the engine's tests, and test_speech.py

HEARD = np.random.default_rng(0).integers(0, 64, 24).tolist()
TALK = [
    {"role": "user", "text": "how are you?"},
    {"role": "assistant", "text": "fine", "codes": [HEARD[:9]]},
    {"role": "user", "codes": [HEARD]},
]
WRITTEN = [
    {"role": "system", "text": "be terse."},
    {"role": "user", "text": "how are you?"},
    {"role": "assistant", "text": "fine"},
    {"role": "user", "text": "and now?"},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedVita]:
    with serve(tmp_path_factory.mktemp("vita"), random_vita.SMALL) as served:
        yield served


@pytest.mark.parametrize("schedule", [None, "turbo", "vanilla"])
def test_text_and_speech_are_exact_on_every_schedule(served: ServedVita, schedule: str | None) -> None:
    options: dict[str, Any] = {} if schedule is None else {"schedule": schedule}
    served.speaks(options, {"messages": json.dumps(TALK), "task": "dialogue"})


@pytest.mark.parametrize("text", [{"temperature": 0.0}, {}], ids=["greedy", "drawn"])
def test_served_vita_audio_matches_the_reference(served: ServedVita, text: dict[str, float]) -> None:
    options = {"text": {"max_rows": NUM_IDS, **text}, "schedule": "boost", "seed": 3}
    served.speaks(options, {"text": "how are you?", "task": "tts"})


def test_audio_and_its_tokenizer_codes_give_the_same_reply(served: ServedVita) -> None:
    pcm, tokenizer = speech(1.5), load_tokenizer(served.checkpoint, random_vita.NUM_CODES)
    assert tokenizer is not None
    turn = {"role": "user", "audio": "pcm_in"}
    answer = served.speaks(
        {}, {"messages": json.dumps([turn]), "task": "dialogue", "pcm_in": pcm, "sample_rate": 16_000}
    )
    turn = {"role": "user", "codes": [tokenizer.encode(pcm).tolist()]}
    text, _ = served.answer({"text": {"max_rows": NUM_IDS}}, {"messages": json.dumps([turn]), "task": "dialogue"})
    assert answer.text == text


@pytest.mark.parametrize(("task", "turns"), [("asr", TALK[2:]), ("chat", WRITTEN)], ids=["asr", "chat"])
def test_served_vita_audio_text_task_returns_only_text(
    served: ServedVita, task: str, turns: list[dict[str, Any]]
) -> None:
    served.writes({}, {"messages": json.dumps(turns), "task": task})
