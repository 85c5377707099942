"""Higgs Audio prompts equal those of transformers' processor; refusals mention the unsupported turn."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, DacFeatureExtractor, HiggsAudioV2Processor

from lab.releases.random_codecs import make_model as make_codec
from plugins.higgs_audio.lab.random_higgs_audio import AUDIO_OUT, SPELLED, make_model
from plugins.higgs_audio.tests.published_higgs_audio import convert
from plugins.higgs_audio.tests.test_codec import transformers_class
from stretto.errors import InvalidRequest
from stretto.preprocessing.request import Preprocessor, RawRequest

PCM = (np.sin(np.arange(9_000) ** 1.3 / 300) / 2).astype(np.float32)
CODES = np.random.default_rng(0).integers(1024, size=(8, 3)).tolist()
OPENING = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nGenerate audio following instruction."
SCENE = "\n\n<|scene_desc_start|>\na quiet well\n<|scene_desc_end|>"
REPLY = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"
HEARD = f"{REPLY}<|AUDIO_OUT|><|audio_eos|><|eot_id|>"


def asked(text: str) -> str:
    return f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"


@dataclass(frozen=True)
class Made:
    """A converted release, the objects that read it, and its transformers tokenizer."""

    preprocessor: Preprocessor
    tokenizer: Any

    def rows(self, options: dict[str, Any] | None = None, **inputs: Any) -> list[list[int]]:
        return self.preprocessor.prepare(RawRequest(options=json.dumps(options or {}), **inputs)).rows.tolist()

    def expected(self, text: str, *audios: np.ndarray) -> list[list[int]]:
        """Return the rows of the processor's `text` with codes [8, T], and the row that begins audio."""
        layout, heard = self.preprocessor.family.layout, [self.delayed(codes) for codes in audios]
        rows: list[list[int]] = []
        for token in self.tokenizer(text, add_special_tokens=False).input_ids:
            rows += heard.pop(0) if token == AUDIO_OUT else [[token] + [layout.pad_id] * 7]
        assert not heard
        return [*rows, [ids.stop for ids in layout.audio]]

    def delayed(self, codes: np.ndarray) -> list[list[int]]:
        """Return a turn's codes between begin and end codes, delayed as by the processor."""
        layout = self.preprocessor.family.layout
        whole = np.pad(codes, ((0, 0), (1, 1)), constant_values=((0, 0), (1024, 1025)))
        marks = SimpleNamespace(audio_stream_bos_id=1024, audio_stream_eos_id=1025)
        made = HiggsAudioV2Processor.build_delay_pattern(marks, torch.from_numpy(whole)[None])[0].T
        return (made.numpy() + [ids.start for ids in layout.audio]).tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("higgs_audio")
    checkpoint, _, _ = convert(folder, make_model())
    return Made(Preprocessor(checkpoint), AutoTokenizer.from_pretrained(folder / "release"))


def talk(*turns: dict[str, Any]) -> str:
    return json.dumps(turns)


def turn(role: str, **content: Any) -> dict[str, Any]:
    return {"role": role, **content}


def test_higgs_text_prompt_with_and_without_a_scene(made: Made) -> None:
    assert made.rows(text=" a well\n") == made.expected(OPENING + "<|eot_id|>" + asked("a well") + REPLY)
    in_scene = made.expected(OPENING + SCENE + "<|eot_id|>" + asked("why?\nso") + REPLY)
    assert made.rows({"instruct": "a quiet well"}, text="why?\nso") == in_scene
    turns = talk(turn("system", text="a quiet well "), turn("user", text="why?\nso"))
    assert made.rows(messages=turns) == in_scene


@pytest.mark.parametrize("length", [960, 961, 1439, 4799, 9_000])  # one frame, …, 9.4
def test_recording_rows_match_the_higgs_processor(made: Made, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """The complete prompt, including codes, equals that of `HiggsAudioV2Processor`; a system turn may have audio."""
    codec = make_codec("higgs")
    tokenizer = transformers_class(monkeypatch)(codec.config).eval()
    tokenizer.load_state_dict(codec.state_dict())
    extractor = DacFeatureExtractor(sampling_rate=24_000, hop_length=960)
    monkeypatch.setattr(HiggsAudioV2Processor, "check_argument_for_proper_class", lambda *_: None)  # imported twice
    processor = HiggsAudioV2Processor(extractor, made.tokenizer, tokenizer)
    pcm, layout = PCM[:length], made.preprocessor.family.layout
    text = OPENING + "<|eot_id|>" + asked("how are you?") + HEARD + asked("a well") + REPLY
    with torch.no_grad():
        read = processor(text=text, audio=[pcm], sampling_rate=24_000, add_special_tokens=False, return_tensors="pt")
    codes = (read["audio_input_ids"][0] + torch.tensor([ids.start for ids in layout.audio])).tolist()
    expected = [
        codes.pop(0) if token in (AUDIO_OUT, SPELLED["<|reserved_special_token_6|>"]) else [token] + [layout.pad_id] * 7
        for token in read["input_ids"][0].tolist()
    ]
    assert not codes
    heard, asks = (turn("user", text="how are you?"), turn("assistant", audio="pcm_in")), turn("user", text="a well")
    for turns in (heard, [turn("system", audio="pcm_in", text="how are you?")]):
        rows = made.rows(messages=talk(*turns, asks), pcm_in=pcm, sample_rate=24_000)
        assert rows == [*expected, [ids.stop for ids in layout.audio]]


def test_assistant_codes_are_prompted_as_a_voice(made: Made) -> None:
    text = OPENING + "<|eot_id|>" + asked("[SPEAKER1] fine") + HEARD
    expected = made.expected(text + asked("a well") + REPLY, np.array(CODES))
    turns = turn("user", text="[SPEAKER1] fine"), turn("assistant", codes=CODES), turn("user", text="a well")
    assert made.rows(messages=talk(*turns)) == expected


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": " "}, "text: expected text with at least one non-space character"),
        ({"text": "o" * 4001}, "text: expected at most 4000 characters"),
        ({"text": "a", "options": '{"voice": "2"}'}, "options.voice: expected"),
        (
            {"messages": talk(turn("system", codes=CODES), turn("user", text="a"))},
            "messages[0].codes: expected audio together with its transcript",
        ),
        (
            {"messages": talk(turn("assistant", text="b"), turn("user", text="a"))},
            "messages[0].text: expected only text in user turns and only audio in assistant turns",
        ),
        (
            {"messages": talk(turn("user", codes=CODES), turn("assistant", codes=CODES), turn("user", text="a"))},
            "messages[0].codes: expected only text in user turns",
        ),
        (
            {"messages": talk(turn("assistant", codes=CODES[:4]), turn("user", text="a"))},
            "messages[0].codes: expected 8 streams, got 4 streams",
        ),
        (
            {
                "messages": talk(turn("system", text="b"), turn("user", text="a")),
                "options": '{"instruct": "c"}',
            },
            "options.instruct: expected no value, because a system turn describes the scene",
        ),
        ({"text": "o " * 300}, "text: expected a prompt of at most 255 rows"),
    ],
)
def test_invalid_input_error_names_its_field(made: Made, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        made.preprocessor.prepare(RawRequest(**inputs))
    assert str(refusal.value).startswith(message)
