"""VITA-Audio through the real server: release, converter, repository, server, client; text and speech of one reply.

What comes back is what the recomputing reference says, which has been held to the authors' `generate`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.checkpoints import random_vita
from benchmarks.checkpoints.random_glm4_tokenizer import write_glm4_tokenizer
from benchmarks.checkpoints.random_glm4_voice import write_glm4_voice
from stretto.checkpoints.command import main
from stretto.checkpoints.make_repository import make
from stretto.codec.glm4_voice.tokenizer import load_tokenizer
from stretto.families.text_codec import subword_codec
from stretto.families.tokenizer import TextTokenizer
from stretto.families.vita_audio.family import SCHEDULES
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.codec.glm4_voice.heard import speech
from tests.reference.vita_audio import VitaReference
from tests.server.conftest import Server
from tests.vita_release import command

pytestmark = pytest.mark.server

NUM_IDS = 90
HEARD = np.random.default_rng(0).integers(0, 64, 24).tolist()
TALK = [
    {"role": "user", "text": "how are you?"},
    {"role": "assistant", "text": "fine", "codes": [HEARD[:9]]},
    {"role": "user", "codes": [HEARD]},
]


@dataclass(frozen=True)
class Served:
    """A server, its checkpoint, and what its model should say."""

    server: Server
    checkpoint: Path
    reference: VitaReference

    def answer(self, options: dict[str, Any], inputs: dict[str, Any]) -> tuple[str, list[int]]:
        """Text and codes of the greedy reply to a request."""
        preprocessor = Preprocessor(self.checkpoint)
        prompt = preprocessor.prepare(RawRequest(**inputs, options=json.dumps(options)))
        schedule, penalty = SCHEDULES[options.get("schedule", "balance")], prompt.sampling.repetition_penalty
        ids = self.reference.reply(prompt.rows[:, 0].tolist(), schedule, NUM_IDS, penalty)
        ends = preprocessor.family.drawn_ends
        ids = ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
        first = preprocessor.family.layout.audio[0]
        assert preprocessor.family.subwords is not None
        reader = subword_codec(TextTokenizer.at(self.checkpoint), preprocessor.family.subwords).reader(prompt.task)
        text = "".join(reader.push(token) for token in ids if token not in first) + reader.end()
        return text, [token - first.start for token in ids if token in first]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("vita")
    release = random_vita.write_release(folder / "release")
    codec = ["--codec", str(write_glm4_voice(folder / "codec"))]
    hears = ["--ssl-tokenizer", str(write_glm4_tokenizer(folder / "glm-4-voice-tokenizer"))]
    assert main([*command(release, folder / "checkpoint"), *codec, *hears]) == 0
    make(folder / "checkpoint", folder / "repository", {})
    reference = VitaReference(random_vita.SMALL, random_vita.tensors(random_vita.SMALL, 1))
    server = Server(folder, folder / "repository")
    try:
        server.start()
        yield Served(server, folder / "checkpoint", reference)
    finally:
        server.stop()


@pytest.mark.parametrize("schedule", [None, "turbo", "vanilla"])
def test_a_reply_s_text_and_speech_are_the_reference_s_on_every_schedule(served: Served, schedule: str | None) -> None:
    options: dict[str, Any] = {"text": {"max_rows": NUM_IDS}, "output": {"codes": True}}
    options |= {} if schedule is None else {"schedule": schedule}
    inputs = {"messages": json.dumps(TALK), "task": "dialogue"}
    answer = served.server.ask(options, **inputs)
    assert answer.error is None
    text, codes = served.answer(options, inputs)
    assert "".join(event["text"] for event in answer.events) == text
    assert [code for event in answer.events for code in event.get("codes", [[]])[0]] == codes
    assert {event["segment"] for event in answer.events} == {"interleaved"}
    assert answer.report["num_frames"] == len(codes) > 4
    sound = np.concatenate([response.pcm for response in answer.responses if response.pcm is not None])
    assert len(sound) / 22_050 == pytest.approx(len(codes) / 12.5, abs=0.1)
    assert np.abs(sound).max() > 0.001


def test_samples_are_heard_as_the_tokens_that_the_tokenizer_makes_of_them(served: Served) -> None:
    options: dict[str, Any] = {"text": {"max_rows": NUM_IDS}, "output": {"codes": True}}
    pcm, tokenizer = speech(1.5), load_tokenizer(served.checkpoint, random_vita.NUM_CODES)
    assert tokenizer is not None
    turn = {"role": "user", "audio": "pcm_in"}
    samples = {"pcm_in": pcm, "sample_rate": np.array([16_000], np.int32)}
    answer = served.server.ask(options, messages=json.dumps([turn]), task="dialogue", **samples)
    assert answer.error is None
    turn = {"role": "user", "codes": [tokenizer.encode(pcm).tolist()]}
    text, codes = served.answer(options, {"messages": json.dumps([turn]), "task": "dialogue"})
    assert "".join(event["text"] for event in answer.events) == text
    assert [code for event in answer.events for code in event.get("codes", [[]])[0]] == codes


def test_a_text_task_answers_with_text_alone(served: Served) -> None:
    options = {"text": {"max_rows": NUM_IDS}}
    inputs = {"messages": json.dumps(TALK[2:]), "task": "asr"}
    answer = served.server.ask(options, **inputs)
    assert answer.error is None
    assert "".join(event["text"] for event in answer.events) == served.answer(options, inputs)[0]
    assert not any(response.pcm is not None and len(response.pcm) for response in answer.responses)


def test_what_is_wrong_with_a_request_is_said_in_a_line(served: Served) -> None:
    for options, message in (
        ({"schedule": "fast"}, "schedule: expected one of balance, vanilla, boost, turbo, or numbers, got 'fast'"),
        ({"repetition_penalty": 20}, "options.repetition_penalty: expected a number in [0.1, 10.0], got 20"),
        ({"audio": {"top_k": 3}}, "options.audio: expected nothing: options.text says how 'tts' draws"),
        ({"guidance_scale": 2}, "options.guidance_scale: expected nothing: options.text says how 'tts' draws"),
    ):
        error = served.server.ask(options, text="how are you?").error
        assert error is not None
        assert message in error
    long = served.server.ask({}, text="how are you? " * 600)
    assert long.error is not None
    assert "got 7800 characters" not in long.error
    assert "expected a prompt of at most 2047 rows before a reply to tts" in long.error
