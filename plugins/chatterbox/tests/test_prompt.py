"""Chatterbox prompts have the authors' text ids with added positions, and a voice as rows of the table."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.chatterbox.lab.random_chatterbox import KNOWN, convert
from plugins.chatterbox.tests.chatterbox_release import REPLIES, opened, write
from stretto.codecs.base import Whole
from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.family.text import TextTokenizer
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.weights.loading import open_tensors
from stretto_chatterbox.family import END_OF_TEXT, START_OF_TEXT, ChatterboxVocabulary
from stretto_chatterbox.prompt import ChatterboxTemplate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("chatterbox"))


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("multilingual"), is_multilingual=True)


def known_at(checkpoint: Path) -> ChatterboxVocabulary:
    return ChatterboxVocabulary.from_record(config_at(checkpoint)[VOCABULARY])


@pytest.mark.parametrize("reply", [*REPLIES["english"], *REPLIES["multilingual"]], ids=lambda reply: reply["text"])
def test_prompt_rows_are_voice_text_and_two_start_rows(
    reply: dict[str, Any], checkpoint: Path, multilingual: Path
) -> None:
    checkpoint = multilingual if "language" in reply else checkpoint
    known = known_at(checkpoint)
    rows = write(*opened(checkpoint), reply["text"], reply["voice"], reply.get("language"))
    voice, text, start = np.split(rows, [known.num_voice_rows, len(rows) - 2])
    assert voice.tolist() == [[token, known.pad] for token in known.voice(str(reply["voice"]))]
    assert text[:, 0].tolist() == reply["ids"]
    assert text[:, 1].tolist() == list(known.text_positions[: len(text)])
    assert start.tolist() == [[known.start, known.speech_positions.start]] * 2


@pytest.mark.parametrize(
    "reply", [*REPLIES["english"][:2], *REPLIES["multilingual"][:2]], ids=lambda reply: reply["voice"]
)
def test_voice_rows_match_the_authors(reply: dict[str, Any], checkpoint: Path, multilingual: Path) -> None:
    checkpoint = multilingual if "language" in reply else checkpoint
    table = open_tensors(checkpoint)["model.embed_tokens.weight"]
    ids = known_at(checkpoint).voice(str(reply["voice"]))
    sums = table[ids.start : ids.stop].abs().sum(1)
    assert torch.allclose(sums, torch.tensor(reply["voice_rows"]), rtol=1e-5)
    assert not table[known_at(checkpoint).pad].any()


@pytest.mark.parametrize("text", ["[START]", "a [SPACE] b", "[STOP]x"])
def test_text_cannot_inject_special_tokens(text: str, checkpoint: Path) -> None:
    rows = write(*opened(checkpoint), text)
    ids = rows[KNOWN.num_voice_rows : -2, 0].tolist()
    assert (ids.count(START_OF_TEXT), ids.count(END_OF_TEXT)) == (1, 1)
    assert ids.count(2) == text.count(" ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "at least one character"),
        (" \n", "at least one character"),
        ("b" * 65, "at most 64 char"),
        ("b" * 64, "at most 64 tokens"),
    ],
)
def test_unspeakable_prompts_are_refused(text: str, expected: str, checkpoint: Path) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        write(*opened(checkpoint), text)


def test_a_tokenizer_without_spaces_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    text = (checkpoint / "tokenizer.json").read_text().replace("[SPACE]", "[BLANK]")
    (tmp_path / "tokenizer.json").write_text(text)
    tokenizer = TextTokenizer.at(tmp_path, spells_bytes=False)
    with pytest.raises(CheckpointError, match=r"expected a token \[SPACE\]"):
        ChatterboxTemplate(family_at(checkpoint), known_at(checkpoint), tokenizer)


def test_prompt_has_the_voice_number_and_unblocked_chunking(checkpoint: Path) -> None:
    preprocessor = Preprocessor(checkpoint)
    for voice, number in (("default", 0), ("anna", 1)):
        prompt = preprocessor.prepare(RawRequest(text="hello", options=f'{{"voice": "{voice}"}}'))
        assert (prompt.task, prompt.voice, prompt.delivery.chunking.blocks) == ("tts", number, ())
        assert Prompt.from_bytes("prompt", prompt.to_bytes(), prompt.rows).voice == number


def test_max_rows_beyond_the_codec_limit_is_refused(checkpoint: Path) -> None:
    preprocessor = Preprocessor(checkpoint)
    preprocessor.codec.spec = replace(preprocessor.codec.spec, streaming=Whole(100))
    with pytest.raises(InvalidRequest, match=r"options.audio.max_rows: expected at most 100 rows, .* got 101"):
        preprocessor.prepare(RawRequest(text="hello", options='{"audio": {"max_rows": 101}}'))
    assert preprocessor.prepare(RawRequest(text="hello", options='{"audio": {"max_rows": 100}}')).voice == 0
