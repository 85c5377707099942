"""MOSS-TTS-Realtime prompts: rows equal those of the authors' processor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_realtime_replies import TEXTS, heard_codes
from plugins.moss.lab.random_moss_realtime import IDS
from plugins.moss.tests.engine.test_moss_tts_realtime import absolute
from plugins.moss.tests.moss_realtime_release import convert_release, stored
from plugins.moss.tests.moss_tts.test_prompt import heard
from stretto.codecs.base import load_codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_moss.moss_tts_realtime.family import NUM_PROMPT_IDS
from stretto_moss.moss_tts_realtime.prompt import open_template

KINDS = ("small", "deep")
Opened = tuple[Family, Template, Any]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def opened(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    checkpoint = convert_release(tmp_path_factory.mktemp(kind), kind)
    family = family_at(checkpoint)
    codec = load_codec("moss", checkpoint, num_codebooks=family.num_codebooks)
    return family, open_template(family, checkpoint, codec, "cpu"), codec


def written(opened: Opened, text: str, *voice: Piece, manner: Manner = PLAIN) -> PromptRows:
    family, template, _ = opened
    return template.write(family.tasks[0], (*voice, Piece("user", "text", text)), None, manner)


def first_rows(family: Family, words: list[int]) -> np.ndarray:
    """Return the rows of the first ids of a text, by the rule of the authors' loop."""
    rows = np.full((len(words), 1 + family.num_codebooks), family.layout.codebook_size)
    rows[:, 0] = words
    rows[-1, 1] = family.layout.codebook_size + 1
    return absolute(rows, family)


@pytest.mark.parametrize("number", range(len(TEXTS)))
@pytest.mark.parametrize("has_voice", [False, True])
def test_rows_match_the_authors_processor(opened: Opened, kind: str, number: int, has_voice: bool) -> None:
    """Their prompt, the first twelve ids of the text, and the others for the frames."""
    family, *_ = opened
    voice = [Piece("system", "messages[0].codes", codes=heard_codes(kind))] if has_voice else []
    words = stored()[f"{kind}.words{number}"].tolist()
    prompt = written(opened, TEXTS[number], *voice)
    first = words[:NUM_PROMPT_IDS]
    expected = [absolute(stored()[f"{kind}.prompt{int(has_voice)}"], family), first_rows(family, first)]
    assert prompt.rows.dtype == np.int32
    assert (prompt.rows == np.concatenate(expected)).all()
    assert prompt.track == (*words[NUM_PROMPT_IDS:], IDS["<|text_pad|>"])
    for stream, ids in enumerate(family.layout.audio[1:], 1):
        others = {*prompt.rows[:, stream].tolist()} - {*ids}
        assert others == {family.layout.initial[stream]}, "the engine refuses other ids than codes and pads"
    assert prompt.min_rows == len(prompt.track), "a reply does not end before its text"


@pytest.mark.parametrize("kind", ["small"], indirect=True)
def test_open_prompt_has_rows_for_the_first_ids(opened: Opened, kind: str) -> None:
    """They are those of a text of pads, until its ids are known."""
    family, *_ = opened
    prompt = written(opened, "the text so far ", manner=Manner(is_open=True))
    pads = [IDS["<|text_pad|>"]] * NUM_PROMPT_IDS
    assert prompt.track == ()
    assert (prompt.rows[-NUM_PROMPT_IDS:] == first_rows(family, pads)).all()
    assert (prompt.rows[:-NUM_PROMPT_IDS] == absolute(stored()[f"{kind}.prompt0"], family)).all()


@pytest.mark.parametrize("kind", ["small"], indirect=True)
def test_recording_is_encoded_with_the_first_codebooks(opened: Opened) -> None:
    """An incomplete last frame is left out, as in the authors' streaming programs."""
    family, _, codec = opened
    pcm = np.random.default_rng(3).standard_normal(1920 * 5 + 700).astype(np.float32) * 0.1
    rows = written(opened, "a", Piece("system", "pcm_in", pcm=pcm)).rows
    rows = rows[rows[:, -1] == IDS["<|audio_pad|>"], :-1] - [ids.start for ids in family.layout.audio]
    assert rows.shape == (5, family.num_codebooks)
    assert (codec.encode(pcm) == rows.T).all()


@pytest.mark.parametrize("kind", ["small"], indirect=True)
@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("user", "text", ""), "text: expected text of at least one character"),
        (Piece("user", "text", "a" * 4001), "text: expected at most 4000 characters"),
        (Piece("system", "audio", pcm=np.zeros(1919, np.float32)), "audio: expected audio of at least one frame"),
        (Piece("system", "codes", codes=np.zeros((4, 5), np.int64)), "codes: expected 3 lists of at most 750 codes"),
        (Piece("system", "codes", codes=np.full((3, 5), 16)), r"codes in \[0, 16\), got 3 of 5, up to 16"),
    ],
    ids=["empty", "long", "short recording", "codebooks", "codes"],
)
def test_invalid_pieces_are_refused(opened: Opened, piece: Piece, message: str) -> None:
    family, template, _ = opened
    pieces = (piece,) if piece.role == "user" else (piece, Piece("user", "text", "a"))
    with pytest.raises(InvalidRequest, match=message):
        template.write(family.tasks[0], pieces, None)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (heard(np.zeros(61 * 24_000, np.float32)), "pcm_in: expected at most 60 s"),
        (heard(np.zeros(48_000, np.float32)), "messages[0].audio: expected a recording of a voice, got silence"),
        ({"text": "a", "options": '{"language": "english"}'}, "options.language: expected no value"),
        ({"text": "a", "options": '{"instruct": "slowly"}'}, "options.instruct: expected no value"),
        ({"text": "a", "options": '{"guidance_scale": 2}'}, "options.guidance_scale: expected"),
    ],
)
def test_invalid_input_error_names_its_field(
    inputs: dict[str, Any], message: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint: Path = convert_release(tmp_path_factory.mktemp("checkpoint"))
    with pytest.raises(InvalidRequest) as refusal:
        Preprocessor(checkpoint).prepare(RawRequest(**inputs))
    assert str(refusal.value).startswith(message)


def test_special_tokens_in_a_text_are_characters(tmp_path: Path) -> None:
    prompt = Preprocessor(convert_release(tmp_path)).prepare(RawRequest(text="a <|text_pad|> b"))
    text = [*prompt.rows[:, -1].tolist(), *prompt.track]
    assert text.count(IDS["<|text_pad|>"]) == 1, "only after the text"
