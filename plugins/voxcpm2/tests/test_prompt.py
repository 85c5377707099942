"""VoxCPM2 prompts: text tokenized as by the authors, references, continued recordings, lengths and refusals."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plugins.voxcpm2.lab.random_voxcpm2 import NUM_TOKENS, RECORDINGS
from plugins.voxcpm2.tests.voxcpm2_release import (
    LATENT_TOLERANCE,
    MODES,
    PROMPT_TEXT,
    TEXT,
    convert_release,
    reply,
    request,
    wave_file,
)
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.streams.layout import latents_of
from stretto_voxcpm2.family import AUDIO_START, REFERENCE_END, REFERENCE_START
from stretto_voxcpm2.prompt import VoxCpmTokenizer

FRAME = NUM_TOKENS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("voxcpm2"))


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


@pytest.mark.parametrize("mode", MODES)
def test_rows_match_the_authors(preprocessor: Preprocessor, mode: str) -> None:
    expected, prompt = reply("plain", mode), preprocessor.prepare(request(mode))
    assert prompt.rows[:, 0].tolist() == np.where(expected.is_audio, FRAME, expected.text).tolist()
    np.testing.assert_allclose(latents_of(prompt.rows[:, 1:]), expected.latents_before, atol=LATENT_TOLERANCE)
    assert prompt.num_reference_rows == (3 if expected.is_audio[-1] else 0)


def test_system_turn_transcript_prompts_a_continuation(preprocessor: Preprocessor) -> None:
    """The prompt equals that of an earlier reply with this transcript."""
    turns = [{"role": "system", "audio": "audio", "text": PROMPT_TEXT}, {"role": "user", "text": TEXT}]
    prompt = preprocessor.prepare(RawRequest(messages=json.dumps(turns), audio=wave_file("prompt")))
    assert prompt.rows.tolist() == preprocessor.prepare(request("continuation")).rows.tolist()


@pytest.mark.parametrize("mode", ["reference", "continuation"])
def test_recordings_may_be_given_as_latents(preprocessor: Preprocessor, mode: str) -> None:
    expected = preprocessor.prepare(request(mode)).rows
    data = base64.b64encode(expected[expected[:, 0] == FRAME, 1:].T.tobytes()).decode()
    turns: list[dict[str, Any]] = [{"role": "system", "latents": data}, {"role": "user", "text": TEXT}]
    if mode == "continuation":
        turns[0]["text"] = PROMPT_TEXT
    assert preprocessor.prepare(RawRequest(messages=json.dumps(turns))).rows.tolist() == expected.tolist()


def test_multi_character_chinese_tokens_are_split(checkpoint: Path) -> None:
    tokenizer = TextTokenizer.at(checkpoint, spells_bytes=False)
    ids = {token: token_id for token_id, token in tokenizer.tokens.items()}
    assert ids["你好"] in tokenizer.encode("a你好")
    own = VoxCpmTokenizer(tokenizer)
    assert own.encode("a你好")[-2:] == [ids["你"], ids["好"]]
    assert own.encode("the a") == tokenizer.encode("the a")


def test_characters_without_a_token_are_unknown(checkpoint: Path) -> None:
    tokens = {0: "<unk>", 1: "你好", 2: "▁你好", 3: "你"}
    tokenizer: Any = SimpleNamespace(tokens=tokens, encode=lambda text: [1, 2, 3])
    assert VoxCpmTokenizer(tokenizer).encode("") == [3, 0, 3, 0, 3]
    del tokens[0]
    with pytest.raises(CheckpointError, match="expected a token for each character of '你好', or <unk>"):
        VoxCpmTokenizer(tokenizer)


def test_text_is_joined_to_one_line_and_limits_the_reply_length(preprocessor: Preprocessor) -> None:
    one, other = (preprocessor.prepare(RawRequest(text=text)) for text in ("a\n\n b", "a b"))
    assert one.rows.tolist() == other.rows.tolist()
    assert one.rows[-1, 0] == AUDIO_START
    assert one.sampling.audio.max_rows == 6 * (len(one.rows) - 1) + 10
    assert one.sampling.audio.min_rows == 3
    continued = preprocessor.prepare(RawRequest(**{**vars_of(request("continuation")), "options": None}))
    zero = preprocessor.prepare(RawRequest(text=TEXT))
    assert continued.sampling.audio.max_rows == zero.sampling.audio.max_rows, "of the text to speak alone"


def vars_of(raw: RawRequest) -> dict[str, Any]:
    return {name: getattr(raw, name) for name in raw.__dataclass_fields__}


def test_a_description_precedes_the_text(preprocessor: Preprocessor) -> None:
    described = preprocessor.prepare(RawRequest(text="hello", options='{"instruct": " a low voice "}'))
    assert described.rows.tolist() == preprocessor.prepare(RawRequest(text="(a low voice)hello")).rows.tolist()


def test_defaults_and_options(preprocessor: Preprocessor) -> None:
    latents = preprocessor.prepare(RawRequest(text="a")).sampling.latents
    assert latents is not None
    assert (latents.steps, latents.tail_rows, latents.guidance_scale) == (10, 1, 2.0)
    options = '{"latents": {"steps": 5}, "guidance": {"scale": 3.5}}'
    sampling = preprocessor.prepare(RawRequest(text="a", options=options)).sampling
    assert sampling.latents is not None
    assert (sampling.latents.steps, sampling.latents.guidance_scale, sampling.has_pair) == (5, 3.5, False)


def test_voxcpm2_reference_is_enclosed_by_markers(preprocessor: Preprocessor) -> None:
    ids = preprocessor.prepare(request("reference")).rows[:, 0].tolist()
    number = 1 + RECORDINGS["reference"] // 2560
    assert ids[: number + 2] == [REFERENCE_START, *[FRAME] * number, REFERENCE_END]


SYSTEM = {"role": "system", "audio": "audio"}
USER, ASSISTANT = {"role": "user", "text": "a"}, {"role": "assistant", "audio": "audio"}


def asked(*turns: dict[str, Any], **options: Any) -> RawRequest:
    files = tuple(wave_file("reference") for turn in turns if "audio" in turn)
    return RawRequest(messages=json.dumps(turns), audio=files or None, options=json.dumps(options))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawRequest(text=" \n"), "text: expected text of at least one character"),
        (RawRequest(text="a" * 1001), "text: expected at most 1000 characters, got 1001"),
        (asked({"role": "system", "text": "a"}, USER), r"messages\[0\].text: expected a transcript with its audio"),
        (asked(SYSTEM | {"text": "a"}, USER, ASSISTANT, USER), "messages: .* reply .* got a transcript as well"),
        (asked(USER, ASSISTANT, USER, ASSISTANT, USER), "messages: expected one text with the audio of its reply"),
        (
            asked(USER, {"role": "assistant", "text": "b"}, USER),
            "messages: expected one text with the audio of its reply",
        ),
        (asked(USER, instruct="\ud800"), "options.instruct: expected text without lone surrogates"),
        (asked(USER, instruct="low " * 251), "options.instruct: expected at most 1000 characters, got 1004"),
        (asked(USER, ASSISTANT, USER, instruct="low"), "options.instruct: expected no value, as audio is continued"),
        (
            asked({"role": "system", "codes": [[1]]}, USER),
            r"messages\[0\].codes: expected audio or latents \(frames of this model are latents\), got codes",
        ),
        (
            RawRequest(
                messages=json.dumps([{"role": "system", "audio": "pcm_in"}, USER]),
                pcm_in=np.resize([0.5, -0.5], 6000).astype(np.float32),
                sample_rate=16000,
            ),
            r"messages\[0\].audio: expected at least 0.4 s, got 0.3750 s",
        ),
        (
            RawRequest(
                messages=json.dumps([{"role": "system", "audio": "pcm_in"}, USER]),
                pcm_in=np.zeros(31 * 16000, np.float32),
                sample_rate=16000,
            ),
            "pcm_in: expected at most 30 s",
        ),
        (asked(USER, instruct="a" * 1001), "options.instruct: expected at most 1000 characters, got 1001"),
        (RawRequest(text="a", options='{"instruct": "\\ud800"}'), "options.instruct: expected text without lone"),
        (asked(USER, voice="alba"), r"options.voice: expected no value \(this model has no named voices"),
        (asked(USER, latents={"steps": 1}), r"options.latents.steps: expected an integer in \[2, 50\], got 1"),
        (asked(USER, guidance_scale=-1), r"options.guidance_scale: expected a number in \[0.0"),
        (asked(USER, guidance={"policy": "adaptive"}), "options.guidance.policy: expected 'always'"),
        (asked(USER, output={"codes": True}), "options.output.codes: expected false"),
    ],
)
def test_unspeakable_input_is_refused(preprocessor: Preprocessor, raw: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        preprocessor.prepare(raw)
