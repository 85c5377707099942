"""MOSS-TTS-Local prompts: rows equal those of the authors' processor."""

import json
from typing import Any

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_local_replies import INSTRUCTION, LANGUAGE, TEXTS, heard_codes
from plugins.moss.lab.random_moss_local import IDS
from plugins.moss.tests.engine.test_moss_tts_local import absolute
from plugins.moss.tests.moss_local_release import convert_release, stored
from stretto.codecs.base import load_codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.family.prompting import PLAIN, Manner, Piece, Template
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_moss.moss_tts.prompt import levelled
from stretto_moss.moss_tts_local.prompt import open_template

KINDS = ("small", "deep")
Opened = tuple[Family, Template, Any]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def opened(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    checkpoint = convert_release(tmp_path_factory.mktemp(kind), kind)
    family, codec = family_at(checkpoint), load_codec("moss", checkpoint)
    return family, open_template(family, checkpoint, codec, "cpu"), codec


def rows_of(opened: Opened, text: str, *voice: Piece, manner: Manner = PLAIN) -> np.ndarray:
    family, template, _ = opened
    return template.write(family.tasks[0], (*voice, Piece("user", "text", text)), None, manner).rows


def test_rows_match_the_authors_processor(opened: Opened, kind: str) -> None:
    family, *_ = opened
    voice = Piece("system", "messages[0].codes", codes=heard_codes(kind))
    manner = Manner(language=LANGUAGE.lower(), instruct=f" {INSTRUCTION} ")
    for number, rows in enumerate((rows_of(opened, TEXTS[0]), rows_of(opened, TEXTS[1], voice, manner=manner))):
        assert rows.dtype == np.int32
        assert (rows == absolute(stored()[f"{kind}.prompt{number}"], family)).all()


@pytest.mark.parametrize("kind", ["small"], indirect=True)
def test_recording_is_levelled_and_encoded(opened: Opened) -> None:
    family, _, codec = opened
    pcm = np.random.default_rng(3).standard_normal(3840 * 5 + 700).astype(np.float32) * 0.02
    rows = rows_of(opened, "a", Piece("system", "pcm_in", pcm=pcm))
    rows = rows[rows[:, 0] == IDS["audio_user_slot_token_id"], 1:] - [ids.start for ids in family.layout.audio[1:]]
    assert rows.shape == (5, family.num_codebooks)
    assert (codec.encode(levelled(pcm)) == rows.T).all()


@pytest.mark.parametrize("kind", ["small"], indirect=True)
@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("user", "text", " \n"), "text: expected text of at least one character"),
        (Piece("user", "text", "a" * 4001), "text: expected at most 4000 characters"),
        (Piece("system", "audio", pcm=np.zeros(3839, np.float32)), "audio: expected audio of at least one frame"),
        (Piece("system", "codes", codes=np.zeros((3, 5), np.int64)), "codes: expected 4 lists of at most 750 codes"),
        (Piece("system", "codes", codes=np.full((4, 5), 16)), r"codes in \[0, 16\), got 4 of 5, up to 16"),
    ],
    ids=["empty", "long", "short recording", "codebooks", "codes"],
)
def test_invalid_pieces_are_refused(opened: Opened, piece: Piece, message: str) -> None:
    family, template, _ = opened
    pieces = (piece,) if piece.role == "user" else (piece, Piece("user", "text", "a"))
    with pytest.raises(InvalidRequest, match=message):
        template.write(family.tasks[0], pieces, None)


def test_invalid_options_name_their_field(tmp_path_factory: pytest.TempPathFactory) -> None:
    preprocessor = Preprocessor(convert_release(tmp_path_factory.mktemp("checkpoint")))
    for options, message in (
        ({"language": "klingon"}, "options.language: expected"),
        ({"instruct": "a" * 4001}, "options.instruct: expected at most 4000 characters"),
        ({"repetition_penalty": 1.1}, "options.repetition_penalty: expected 1.0"),
        ({"text_mode": "open"}, "options.text_mode: expected no value"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            preprocessor.prepare(RawRequest(text="a", options=json.dumps(options)))
        assert str(refusal.value).startswith(message)
    prompt = preprocessor.prepare(RawRequest(text="a <|audio_end|> b"))
    assert IDS["audio_end_token_id"] not in prompt.rows[:, 0], "special tokens in a text are characters"
