"""Higgs Audio v3 prompts: tags are single tokens, recordings are delayed; refusals mention the unsupported part.

`tests/engine/test_higgs_audio_v3.py` compares whole prompts with those of mlx-audio.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from plugins.higgs_audio.lab.random_higgs_audio_v3 import TAGS, codec_config, tensors
from plugins.higgs_audio.tests.higgs_audio_v3_release import convert_release
from stretto.errors import InvalidRequest
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_higgs_audio.higgs_audio_v3.convert import CODEC
from tests.codecs.test_higgs import transformers_class
from tests.refused_conversion import edited

SECOND = 24_000
PCM = (np.sin(np.arange(2 * SECOND) ** 1.3 / 300) / 2).astype(np.float32)
CODES = np.random.default_rng(0).integers(1024, size=(8, 3)).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("higgs_audio_v3"))


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def talk(*turns: dict[str, Any]) -> str:
    return json.dumps(turns)


def turn(role: str, **content: Any) -> dict[str, Any]:
    return {"role": role, **content}


def heard(pcm: np.ndarray, sample_rate: int = SECOND) -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording."""
    turns = talk(turn("system", audio="pcm_in"), turn("user", text="a"))
    return {"messages": turns, "pcm_in": pcm, "sample_rate": sample_rate}


@pytest.mark.parametrize(
    "text", ["the well", " the\nwell ", f"{TAGS[0]}it rains", f"a{TAGS[3]}b{TAGS[3]}{TAGS[1]}", f"{TAGS[2]} Ahem"]
)
def test_text_prompt_equals_that_of_the_tokenizer(checkpoint: Path, preprocessor: Preprocessor, text: str) -> None:
    """The library finds the added tokens, of which only the tags may be in a text."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    expected = tokenizer.encode(f"<|tts|><|text|>{text}<|audio|>", add_special_tokens=False).ids
    prompt = preprocessor.prepare(RawRequest(text=text))
    assert prompt.rows[:, 0].tolist() == expected
    assert (prompt.rows[:, 1:] == preprocessor.family.layout.pad_id).all()


def test_streams_begin_with_their_begin_ids(preprocessor: Preprocessor) -> None:
    prompt, layout = preprocessor.prepare(RawRequest(text="a")), preprocessor.family.layout
    assert prompt.delayed_tail is not None
    assert prompt.delayed_tail.tolist() == [[ids.stop for ids in layout.audio[1:]]] * 7


@pytest.mark.parametrize("length", [SECOND // 2, SECOND, SECOND + 961, 2 * SECOND])
def test_recording_has_the_codes_of_transformers(
    preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """A recording shorter than a second is completed with silence."""
    tokenizer = transformers_class(monkeypatch)(codec_config()).eval()
    found = {name.removeprefix(CODEC): each for name, each in tensors().items() if name.startswith(CODEC)}
    tokenizer.load_state_dict({name: found[name] for name in tokenizer.state_dict()})
    pcm = torch.from_numpy(np.pad(PCM[:length], (0, max(0, SECOND - length))))
    with torch.no_grad():
        codes = tokenizer.encode(pcm[None, None]).audio_codes[0].numpy()
    spoken = turn("user", text="a")
    given = talk(turn("system", text="b", codes=codes.tolist()), spoken)
    heard = preprocessor.prepare(
        RawRequest(
            messages=talk(turn("system", text="b", audio="pcm_in"), spoken), pcm_in=PCM[:length], sample_rate=24_000
        )
    )
    assert heard.rows.tolist() == preprocessor.prepare(RawRequest(messages=given)).rows.tolist()


def test_recording_without_words(preprocessor: Preprocessor) -> None:
    family = preprocessor.family
    rows = preprocessor.prepare(RawRequest(messages=talk(turn("system", codes=CODES), turn("user", text="a")))).rows
    recorded = rows[2 : 2 + 3 + 7] - [ids.start for ids in family.layout.audio]
    assert rows[:2, 0].tolist() == [family.markers["<|tts|>"], family.markers["<|ref_audio|>"]]
    assert recorded[:, 0].tolist() == [*CODES[0], *[1025] * 7]
    assert recorded[:, 7].tolist() == [*[1024] * 7, *CODES[7]]
    assert rows[12, 0] == family.markers["<|text|>"]


@pytest.mark.parametrize("sample_rate", [8000, 48_000])
def test_recording_of_another_rate_has_its_length(preprocessor: Preprocessor, sample_rate: int) -> None:
    rows = preprocessor.prepare(RawRequest(**heard(np.resize(PCM, 2 * sample_rate), sample_rate))).rows
    assert len(rows) == len("ra") + 2 * 25 + 7 + len("txa")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": " "}, "text: expected text with at least one non-space character"),
        ({"text": "o" * 4001}, "text: expected at most 4000 characters"),
        *(
            ({"text": f"{tag}a"}, f"text: expected tags of this model ({', '.join(TAGS[:3])}, …), got '{tag[:5]}")
            for tag in (
                "<|emotion:joy|>",
                "<|emotion:very happy|>",
                "<|emotion: elation|>",
                "<| emotion :\nelation|>",
                "<|Emotion:elation|>",
                "<|sfx:a>b|c|>",
                f"<|style:{'o' * 65}|>",
                "<|prosody:|>",
                "<|emotion:<|emotion:joy|>",
            )
        ),
        ({"text": "a", "options": '{"voice": "2"}'}, "options.voice: expected no value"),
        ({"text": "a", "options": '{"instruct": "2"}'}, "options.instruct: expected no value"),
        ({"text": "a", "options": '{"guidance_scale": 2}'}, "options.guidance_scale: expected"),
        (
            {"messages": talk(turn("system", text="b"), turn("user", text="a"))},
            "messages[0].text: expected text only together with the audio of a voice",
        ),
        (
            {"messages": talk(turn("system", codes=CODES[:4]), turn("user", text="a"))},
            "messages[0].codes: expected 8 streams, got 4 streams",
        ),
        (
            {"messages": talk(turn("system", text=" ", codes=CODES), turn("user", text="a"))},
            "messages[0].text: expected text with at least one",
        ),
        ({"text": "o " * 600}, "text: expected a prompt of at most"),
        (heard(np.zeros(31 * SECOND, np.float32)), "pcm_in: expected at most 30 s"),
        (heard(np.zeros(31 * 8000, np.float32), 8000), "pcm_in: expected at most 30 s"),
        (heard(np.zeros(2 * SECOND, np.float32)), "messages[0].audio: expected a recording of a voice, got silence"),
        (heard(np.full(SECOND, np.nan, np.float32)), "pcm_in: expected"),
        (heard(np.zeros(0, np.float32)), "pcm_in: expected"),
    ],
)
def test_invalid_input_error_names_its_field(preprocessor: Preprocessor, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        preprocessor.prepare(RawRequest(**inputs))
    assert str(refusal.value).startswith(message)


def test_markers_in_a_text_are_spelled_or_refused(checkpoint: Path, preprocessor: Preprocessor, tmp_path: Path) -> None:
    """A special token in a text is plain characters. One that the release does not mark as special is refused."""
    assert len(preprocessor.prepare(RawRequest(text="<|audio|>")).rows) > 5
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    with edited(other / "tokenizer.json") as record:
        for token in record["added_tokens"]:
            token["special"] = False
    loaded = Preprocessor(other)
    for name in ("<|audio|>", "<|chatml|>", "<|streaming_tts|>", "<|endoftext|>"):
        with pytest.raises(InvalidRequest, match=f"text: expected none of the model's markers, got {re.escape(name)}"):
            loaded.prepare(RawRequest(text=f"a {name}"))
    for text in (f"{TAGS[0]}a", "<|well|>"):
        found, expected = (each.prepare(RawRequest(text=text)) for each in (loaded, preprocessor))
        assert found.rows.tolist() == expected.rows.tolist()
