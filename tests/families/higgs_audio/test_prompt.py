"""Higgs Audio's prompts are those of transformers' processor, and what it cannot hear is refused by its place."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, HiggsAudioV2Processor

from benchmarks.checkpoints.random_higgs_audio import AUDIO_OUT, make_model
from stretto.errors import InvalidRequest
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.published_higgs_audio import convert

PCM = (np.sin(np.arange(9_000) ** 1.3 / 300) / 2).astype(np.float32)  # 9.4 frames
CODES = np.random.default_rng(0).integers(1024, size=(8, 3)).tolist()
OPENING = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nGenerate audio following instruction."
SCENE = "\n\n<|scene_desc_start|>\na quiet well\n<|scene_desc_end|>"
REPLY = "<|start_header_id|>assistant<|end_header_id|>\n\n<|audio_out_bos|>"
HEARD = f"{REPLY}<|AUDIO_OUT|><|audio_eos|><|eot_id|>"


def asked(text: str) -> str:
    return f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"


@dataclass(frozen=True)
class Made:
    """A converted release, what reads it, and transformers' tokenizer of it."""

    preprocessor: Preprocessor
    tokenizer: Any

    def rows(self, options: dict[str, Any] | None = None, **inputs: Any) -> list[list[int]]:
        return self.preprocessor.prepare(RawRequest(options=json.dumps(options or {}), **inputs)).rows.tolist()

    def expected(self, text: str, *audios: np.ndarray) -> list[list[int]]:
        """Rows of the processor's `text`, codes [8, T] in the place of their names, and the row of begins."""
        layout, heard = self.preprocessor.family.layout, [self.delayed(codes) for codes in audios]
        rows: list[list[int]] = []
        for token in self.tokenizer(text, add_special_tokens=False).input_ids:
            rows += heard.pop(0) if token == AUDIO_OUT else [[token] + [layout.pad_id] * 7]
        assert not heard
        return [*rows, [ids.stop for ids in layout.audio]]

    def delayed(self, codes: np.ndarray) -> list[list[int]]:
        """A turn's codes between begins and ends, as the processor delays them."""
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


def test_a_text_alone_and_in_a_scene(made: Made) -> None:
    assert made.rows(text=" a well\n") == made.expected(OPENING + "<|eot_id|>" + asked("a well") + REPLY)
    in_scene = made.expected(OPENING + SCENE + "<|eot_id|>" + asked("why?\nso") + REPLY)
    assert made.rows({"instruct": "a quiet well"}, text="why?\nso") == in_scene
    turns = talk(turn("system", text="a quiet well "), turn("user", text="why?\nso"))
    assert made.rows(messages=turns) == in_scene


def test_turns_that_were_heard_are_voices_and_so_is_a_system_turn_with_audio(made: Made) -> None:
    codes = made.preprocessor.codec.encode(PCM)
    text = OPENING + "<|eot_id|>" + asked("how are you?") + HEARD + asked("[SPEAKER1] fine") + HEARD
    expected = made.expected(text + asked("a well") + REPLY, codes, np.array(CODES))
    others = turn("user", text="[SPEAKER1] fine"), turn("assistant", codes=CODES), turn("user", text="a well")
    pcm: dict[str, Any] = {"pcm_in": PCM, "sample_rate": 24_000}
    heard = turn("user", text="how are you?"), turn("assistant", audio="pcm_in")
    assert made.rows(messages=talk(*heard, *others), **pcm) == expected
    recorded = turn("system", audio="pcm_in", text="how are you?")
    assert made.rows(messages=talk(recorded, *others), **pcm) == expected


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": " "}, "text: expected text of at least one character that is no space"),
        ({"text": "o" * 4001}, "text: expected at most 4000 characters"),
        ({"text": "a", "options": '{"voice": "2"}'}, "options.voice: expected"),
        (
            {"messages": talk(turn("system", codes=CODES), turn("user", text="a"))},
            "messages[0].codes: expected audio together with the text that is said in it",
        ),
        (
            {"messages": talk(turn("assistant", text="b"), turn("user", text="a"))},
            "messages[0].text: expected words alone in a turn of the user, audio alone in one of the assistant",
        ),
        (
            {"messages": talk(turn("user", codes=CODES), turn("assistant", codes=CODES), turn("user", text="a"))},
            "messages[0].codes: expected words alone in a turn of the user",
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
            "options.instruct: expected nothing, where a system turn says the scene",
        ),
        ({"text": "o " * 300}, "text: expected a prompt of at most 255 rows"),
    ],
)
def test_bad_input_is_refused_by_its_field(made: Made, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        made.preprocessor.prepare(RawRequest(**inputs))
    assert str(refusal.value).startswith(message)
