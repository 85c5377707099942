"""VibeVoice prompts: parts tokenized as by the authors, up to four voices, speaker lines, and refusals."""

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from plugins.vibevoice.tests.vibevoice_release import BEGIN, END, HOP, NUM_IDS, NUM_NUMBERS, convert_release
from stretto.codecs.base import load_codec
from stretto.errors import InvalidRequest
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest

INSTRUCTION = (
    " Transform the text provided by various speakers into speech output, utilizing the distinct voice of each "
    "respective speaker.\n"
)
VOICE = NUM_IDS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("vibevoice"))


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def recording(index: int, num_samples: int = 3 * HOP + 5) -> np.ndarray:
    return (0.1 * np.random.default_rng(index).standard_normal(num_samples)).astype(np.float32)


def wave_file(pcm: np.ndarray) -> bytes:
    file = BytesIO()
    soundfile.write(file, pcm, 24000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def spelled(checkpoint: Path, *parts: str | int) -> list[int]:
    """Return the ids of a sequence of texts, each tokenized separately, and plain ids."""
    tokenizer = TextTokenizer.at(checkpoint)
    return [each for part in parts for each in (tokenizer.encode(part) if isinstance(part, str) else [part])]


def test_prompt_parts_are_tokenized_separately(checkpoint: Path, preprocessor: Preprocessor) -> None:
    prompt = preprocessor.prepare(
        RawRequest(text="Speaker 1: Hello.\n\nspeaker 2 :Hi, you.\nAnd more.\nSpeaker 1: Bye.")
    )
    lines = [" Speaker 0: Hello.\n", " Speaker 1: Hi, you.\n", " Speaker 1: And more.\n", " Speaker 0: Bye.\n"]
    ids = spelled(checkpoint, INSTRUCTION, " Text input:\n", *lines, " Speech output:\n", BEGIN)
    assert prompt.rows[:, 0].tolist() == ids
    assert not prompt.rows[:, 1:].any()
    assert prompt.sampling.audio.max_rows == 2 * len(prompt.rows)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Hello.", [" Speaker 0: Hello.\n"]),
        ("Speaker 0: a\nSpeaker 1: b", [" Speaker 0: a\n", " Speaker 1: b\n"]),
        ("Speaker 2: a", [" Speaker 1: a\n"]),
        ("Speaker 1:\nSpeaker 4: b", [" Speaker 3: b\n"]),
        ("Speaker: a", [" Speaker 0: Speaker: a\n"]),
        ("<|vision_start|>", [" Speaker 0: <|vision_start|>\n"]),
    ],
)
def test_speakers_are_numbered_from_one_or_zero(
    checkpoint: Path, preprocessor: Preprocessor, text: str, lines: list[str]
) -> None:
    """Names of special tokens in a text are plain text."""
    ids = spelled(checkpoint, INSTRUCTION, " Text input:\n", *lines, " Speech output:\n", BEGIN)
    assert preprocessor.prepare(RawRequest(text=text)).rows[:, 0].tolist() == ids


@pytest.mark.parametrize("number", [1, 4])
def test_recordings_become_voices_in_speaker_order(checkpoint: Path, preprocessor: Preprocessor, number: int) -> None:
    turns: list[dict[str, str]] = [{"role": "user", "audio": "audio"} for _ in range(number)]
    if number > 1:
        turns[0]["role"] = "system"
    turns.append({"role": "user", "text": f"Speaker {number}: a"})
    files = tuple(wave_file(recording(index, (3 + index) * HOP)) for index in range(number))
    prompt = preprocessor.prepare(RawRequest(messages=json.dumps(turns), audio=files))
    parts: list[str | int] = [INSTRUCTION, " Voice input:\n"]
    for index in range(number):
        parts += [f" Speaker {index}:", BEGIN, *[VOICE] * (3 + index), END, "\n"]
    ids = spelled(checkpoint, *parts, " Text input:\n", f" Speaker {number - 1}: a\n", " Speech output:\n", BEGIN)
    assert prompt.rows[:, 0].tolist() == ids
    words = np.concatenate(
        [load_codec("vibevoice", checkpoint).encode(recording(index, (3 + index) * HOP)).T for index in range(number)]
    )
    rows = prompt.rows[prompt.rows[:, 0] == VOICE]
    assert rows[:, 1 : 2 + NUM_NUMBERS].tolist() == words.tolist()
    assert not rows[:, 2 + NUM_NUMBERS :].any()
    assert not prompt.rows[prompt.rows[:, 0] != VOICE, 1:].any()


def test_defaults_and_options(preprocessor: Preprocessor) -> None:
    sampling = preprocessor.prepare(RawRequest(text="a")).sampling
    assert sampling.latents is not None
    assert (sampling.latents.steps, sampling.guidance_scale, sampling.has_pair) == (10, 1.3, True)
    options = '{"latents": {"steps": 5}, "guidance": {"scale": 1.0}, "audio": {"max_rows": 9}}'
    sampling = preprocessor.prepare(RawRequest(text="a", options=options)).sampling
    assert sampling.latents is not None
    assert (sampling.latents.steps, sampling.has_pair, sampling.audio.max_rows) == (5, False, 9)


VOICE_TURN, USER = {"role": "user", "audio": "audio"}, {"role": "user", "text": "a"}


def asked(*turns: dict[str, Any], pcm: np.ndarray | None = None, **options: Any) -> RawRequest:
    files = tuple(wave_file(recording(0) if pcm is None else pcm) for turn in turns if "audio" in turn)
    return RawRequest(messages=json.dumps(turns), audio=files or None, options=json.dumps(options))


def test_voices_may_be_given_as_latents(preprocessor: Preprocessor) -> None:
    expected = preprocessor.prepare(asked(VOICE_TURN, USER)).rows
    words = expected[expected[:, 1:].any(1), 1 : 1 + NUM_NUMBERS]
    data = base64.b64encode(words.T.tobytes()).decode()
    assert preprocessor.prepare(asked({"role": "user", "latents": data}, USER)).rows.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawRequest(text=" \n"), "text: expected text of at least one character"),
        (RawRequest(text="Speaker 1:\nSpeaker 2: "), "text: expected text of at least one character"),
        (RawRequest(text="a" * 10_001), "text: expected at most 10000 characters, got 10001"),
        (RawRequest(text="Speaker 5: a"), "text: expected speakers 1 to 4, as there are 4 voices, got speaker 5"),
        (RawRequest(text="Speaker 0: a\nSpeaker 4: b"), "text: expected speakers 0 to 3, .* got speaker 4"),
        (
            asked(VOICE_TURN, USER | {"text": "Speaker 2: a"}),
            r"messages\[1\].text: expected speakers 1 to 1, as there are 1 voices, got speaker 2",
        ),
        (asked(*[VOICE_TURN] * 5, USER), "messages: expected one text, and up to 4 .* got 1 texts and 5 recordings"),
        (asked(USER, USER), "messages: expected one text, and up to 4 recordings .* got 2 texts and 0 recordings"),
        (asked(USER, VOICE_TURN | {"role": "assistant"}, USER), "messages: .* got a turn of the assistant"),
        (
            asked(VOICE_TURN, USER, pcm=recording(0, 9000)),
            r"messages\[0\].audio: expected at least 0.4 s, got 0.3750 s",
        ),
        (asked(VOICE_TURN, USER, pcm=np.zeros(12000, np.float32)), "expected a recording of a voice, got silence"),
        (asked(VOICE_TURN, USER, pcm=recording(0, 31 * 24000)), "expected at most 30 s"),
        (
            asked({"role": "user", "codes": [[1]]}, USER),
            r"messages\[0\].codes: expected audio or latents \(frames of this model are latents\), got codes",
        ),
        (asked(USER, voice="alba"), r"options.voice: expected no value \(this model has no named voices"),
        (asked(USER, latents={"steps": 1}), r"options.latents.steps: expected an integer in \[2, 50\], got 1"),
        (asked(USER, guidance_scale=-1), r"options.guidance_scale: expected a number in \[0.0"),
        (asked(USER, guidance={"policy": "adaptive"}), "options.guidance.policy: expected 'always'"),
        (asked(USER, guidance={"until_s": 2, "policy": "until_s"}), "options.guidance.policy: expected 'always'"),
        (asked(USER, output={"codes": True}), "options.output.codes: expected false"),
    ],
)
def test_unspeakable_input_is_refused(preprocessor: Preprocessor, raw: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        preprocessor.prepare(raw)
