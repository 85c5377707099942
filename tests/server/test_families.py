"""Each task of the published families through the real server: release, converter, repository, server, client.

Replies equal those of the slow reference, which reads the release's own file.
"""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stretto_client.client import SpeechClient
from tests.server.conftest import ServedRelease
from tests.server.listening import Answer
from tests.server.published import Expected

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day the suites of the families, and test_speech.py

LONG_ENOUGH = {"text": {"min_rows": 6, "max_rows": 12, "temperature": 1.0}}
SPOKEN = LONG_ENOUGH | {
    "audio": {"min_rows": 24, "max_rows": 40},
    "chunking": {"first_frames": 4, "steady_frames": 8},
    "output": {"codes": True},
}
PCM = (np.sin(np.arange(19_200) ** 1.4 / 300) / 2).astype(np.float32)
RANDOM = np.random.default_rng(0)
HEARD = [RANDOM.integers(12, size=7).tolist() for _ in range(9)]
VOICE = [RANDOM.integers(12, size=30).tolist() for _ in range(9)]
SAID = [RANDOM.integers(16, size=5).tolist() for _ in range(8)]


def wav(pcm: np.ndarray) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, pcm, 24_000, format="WAV", subtype="FLOAT")
    return held.getvalue()


def turn(role: str, **content: Any) -> dict[str, Any]:
    return {"role": role, **content}


def messages(*turns: dict[str, Any]) -> dict[str, str]:
    return {"messages": json.dumps(turns)}


FILE = {"audio": wav(PCM)}
SAMPLES = {"pcm_in": PCM, "sample_rate": np.array([16_000], np.int32)}
TALK = (
    turn("system", text="you are terse."),
    turn("user", audio="audio", text="what do you hear?"),
    turn("assistant", text="a man says hello", codes=SAID),
    turn("user", audio="pcm_in"),
)
HEARD_TWICE = (
    turn("user", audio="audio", text="what do you hear?"),
    turn("assistant", text="a man says hello"),
    turn("user", audio="audio", text="and now?"),
)
# By family: the request, the task that answers it, and True for text and for audio output.
CASES: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "bagpiper": [
        ("tts", {"text": "the birch canoe"}, "ta"),
        ("speak", {"text": "a well", "task": "speak"}, "a"),
        ("chat", {"text": "how are you?", "task": "chat"}, "t"),
        ("understand", {"text": "what do you hear?", **FILE}, "t"),
        ("understand", SAMPLES, "t"),
        ("understand", {**messages(*TALK), **FILE, **SAMPLES}, "t"),
        ("understand", {**messages(*HEARD_TWICE), "audio": (wav(PCM), wav(PCM[:9_000]))}, "t"),
        ("generate", {"text": "say what you hear.", "task": "generate", **SAMPLES}, "ta"),
    ],
    "opuslm": [
        ("tts", {"text": "the birch canoe"}, "a"),
        ("tts", messages(turn("system", codes=VOICE), turn("user", text="a well")), "a"),
        ("asr", messages(turn("user", codes=HEARD)), "t"),
        ("asr", FILE, "t"),
        ("tts", {**messages(turn("system", audio="pcm_in"), turn("user", text="a well")), **SAMPLES}, "a"),
        ("text_lm", {"text": "the garden", "task": "text_lm"}, "t"),
        ("audio_lm", {**messages(turn("user", codes=HEARD)), "task": "audio_lm"}, "a"),
    ],
    "opuslm-dialogue": [
        ("dialogue", {"text": "how are you?"}, "ta"),
        (
            "dialogue",
            messages(
                turn("system", codes=VOICE),
                turn("user", codes=HEARD, text="how are you?"),
                turn("assistant", text="fine", codes=VOICE),
                turn("user", codes=HEARD),
            ),
            "ta",
        ),
        ("text_dialogue", {"text": "how are you?", "task": "text_dialogue"}, "t"),
        (
            "speak",
            {**messages(turn("user", text="say it."), turn("assistant", text="i am fine")), "task": "speak"},
            "a",
        ),
        ("asr", {**messages(turn("user", codes=HEARD)), "task": "asr"}, "t"),
    ],
}
# OpusLM's own tasks are tested without a server; its dialogue takes the same way through a server.
PAIRS = [
    pytest.param(family, case, id=f"{family}-{case[0]}-{i}") for family in CASES for i, case in enumerate(CASES[family])
]


@pytest.fixture
def served(request: pytest.FixtureRequest, families: Callable[[str], ServedRelease]) -> ServedRelease:
    return families(request.param)


def check_chunks(answer: Answer, expected: Expected) -> None:
    """Check that codes equal the reference and come in several chunks, whose samples equal a one-shot decode."""
    sounds = answer.sounds
    np.testing.assert_array_equal(answer.codes, expected.codes)
    assert len(sounds) >= 2  # how many chunks there are is a matter of the clock
    assert len(sounds[0]) < sum(map(len, sounds)) / 2
    np.testing.assert_allclose(np.concatenate(sounds), expected.pcm, atol=1e-4)
    assert np.abs(expected.pcm).max() > 0.01


@pytest.mark.parametrize(("served", "case"), PAIRS, indirect=["served"])
def test_served_task_streams_the_reference_reply(served: ServedRelease, case: tuple[str, dict[str, Any], str]) -> None:
    task, inputs, comes = case
    options = {"seed": 11} | (SPOKEN if "a" in comes else LONG_ENOUGH)
    if "t" not in comes:
        del options["text"]
    answer = served.server.ask(options, **inputs)
    assert answer.error is None
    expected = served.model.answer(options, inputs)
    assert expected.lead > 2e-5, "the reference itself was nearly undecided: choose another seed"
    report = answer.report
    assert expected.task == task
    texts = [event["text"] for event in answer.events if event["text"]]
    assert "".join(texts) == "".join(expected.pieces)
    assert min(1, len(expected.pieces)) <= len(texts) <= len(expected.pieces)  # how many is a matter of the clock
    assert bool(expected.pieces) == ("t" in comes)
    if "a" in comes:
        check_chunks(answer, expected)
        is_guided = served.name == "bagpiper"
        assert report["num_frames"] == expected.codes.shape[1] >= 16
        assert report["guided_frames"] == is_guided * report["num_frames"]
        assert report["guidance_scale"] == (3.0 if is_guided else 1.0)
    else:
        assert not answer.sounds
        assert len(expected.pieces) > 2
    assert served.server.metric("unguided_total") == 0


@pytest.mark.parametrize("served", ["opuslm-dialogue"], indirect=True)
async def test_conversation_continues_with_its_own_reply_codes(served: ServedRelease) -> None:
    """Our client sends two turns, and the model receives the codes of its own first reply."""
    turns = [turn("system", codes=VOICE), turn("user", text="how are you?")]
    options = {"seed": 5} | SPOKEN
    async with SpeechClient(f"localhost:{served.server.grpc}") as client:
        for _ in range(2):
            events = [event async for event in client.converse(turns, **options)]
            expected = served.model.answer(options, messages(*turns))
            text = "".join(event.text for event in events)
            codes = np.concatenate([event.codes for event in events if event.codes is not None], axis=1)
            assert text == "".join(expected.pieces)
            np.testing.assert_array_equal(codes, expected.codes)
            turns += [turn("assistant", text=text, codes=codes.tolist()), turn("user", codes=HEARD)]
    assert events[-1].is_final


@pytest.mark.parametrize("served", ["opuslm-dialogue"], indirect=True)
def test_chat_command_line_matches_the_reference_replies(served: ServedRelease, tmp_path: Path) -> None:
    """There are a written and a spoken turn; printed and saved replies equal the release's replies."""
    np.save(tmp_path / "voice.npy", np.array(VOICE))
    np.save(tmp_path / "heard.npy", np.array(HEARD))
    options = {"seed": 5} | SPOKEN
    command = [sys.executable, "-m", "stretto", "chat", "--server", f"localhost:{served.server.grpc}"]
    command += ["--clone", str(tmp_path / "voice.npy"), "--out-dir", str(tmp_path), "--play", "off"]
    command += ["--seed", "5", "--options", json.dumps(SPOKEN)]
    lines = f"how are you?\n@{tmp_path / 'heard.npy'} and now?\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    turns, said = [turn("system", codes=VOICE), turn("user", text="how are you?")], ""
    for number in (1, 2):
        expected = served.model.answer(options, messages(*turns))
        text = "".join(expected.pieces)
        pcm, _ = soundfile.read(tmp_path / f"reply-{number}.wav")
        np.testing.assert_allclose(pcm, expected.pcm.clip(-1, 1), atol=2e-4)
        turns += [turn("assistant", text=text, codes=expected.codes.tolist())]
        turns += [turn("user", codes=HEARD, text="and now?")]
        said += text + "\n"
    assert done.stdout == said
