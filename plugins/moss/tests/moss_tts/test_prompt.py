"""MOSS-TTS prompts: rows equal those of the authors' processor, and texts are cleaned as there."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.moss.lab.moss_tts_replies import INSTRUCTION, LANGUAGE, TEXT, TEXTS, heard_codes, recording
from plugins.moss.lab.random_moss import IDS
from plugins.moss.tests.moss_release import convert_release, stored
from stretto.codecs.base import load_codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.family.prompting import PLAIN, Manner, Piece, Template
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto_moss.moss_tts.cleaning import cleaned
from stretto_moss.moss_tts.family import LANGUAGES
from stretto_moss.moss_tts.prompt import levelled, open_template
from tests.refused_conversion import edited

KINDS = ("small", "deep")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def opened(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Template]:
    checkpoint = convert_release(tmp_path_factory.mktemp(kind), kind)
    family = family_at(checkpoint)
    return family, open_template(family, checkpoint, load_codec("moss", checkpoint), "cpu")


def rows_of(opened: tuple[Family, Template], *voice: Piece, text: str = TEXT, manner: Manner = PLAIN) -> np.ndarray:
    family, template = opened
    return template.write(family.tasks[0], (*voice, Piece("user", "text", text)), None, manner).rows


def test_rows_match_the_authors_processor(opened: tuple[Family, Template], kind: str) -> None:
    """The row after them begins the audio; in the authors' loop, the model generates it."""
    family, _ = opened
    first_ids = np.array([0, *(ids.start for ids in family.layout.audio[1:])])
    voice = Piece("system", "messages[0].codes", codes=heard_codes(kind))
    manner = Manner(language=LANGUAGE.lower(), instruct=f" {INSTRUCTION} ")
    for number, rows in enumerate((rows_of(opened), rows_of(opened, voice, manner=manner))):
        assert rows.dtype == np.int32
        assert (rows[:-1] == stored()[f"{kind}.prompt{number}"] + first_ids).all()
        assert rows[-1].tolist() == [IDS["audio_start_token_id"], *family.layout.initial[1:]]


@pytest.mark.parametrize("kind", ["small"], indirect=True)
def test_recording_is_levelled_and_encoded_as_there(opened: tuple[Family, Template]) -> None:
    family, _ = opened
    rows = rows_of(opened, Piece("system", "pcm_in", pcm=recording()))
    expected, heard = stored()["levelled_codes"], rows[rows[:, 0] == IDS["audio_user_slot_token_id"]]
    assert len(heard) == expected.shape[1] + family.num_codebooks - 1
    for codebook, ids in enumerate(family.layout.audio[1:]):
        found = heard[codebook : codebook + expected.shape[1], 1 + codebook] - ids.start
        assert (found == expected[codebook]).mean() > 0.97  # two entries may be equally near
    loud = levelled(np.ones(100, np.float32))
    assert loud[0] == pytest.approx(10 ** (-3 / 20)), "the gain is limited"
    assert levelled(np.full(100, 0.09, np.float32))[0] == pytest.approx(0.1), "-20 dB"


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_texts_are_cleaned_as_there(number: int) -> None:
    assert cleaned(TEXTS[number]) == stored()["texts"][number]


def test_names_that_were_set_aside_return_once() -> None:
    """Otherwise, names that contain the placeholder of the next one twice would double the text with each of them."""
    names = [f"https://a/___PROT{number + 1}______PROT{number + 1}___" for number in range(12)]
    assert len(cleaned(" ".join(names))) <= len(" ".join(names))
    assert cleaned("see #https://example.org/a now") == "see #https://example.org/a now"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("___PROT0___ a.b", "___PROT0___ a.b"),
        ("___PROT1___ a.b" + " ___PROT0___" * 9 + " c.d", "___PROT1___ a.b" + " ___PROT0___" * 9 + " c.d"),
        ("\U000f0000\U000f0001\ue000 a.b", "a.b"),
        ("#u/name 中a.b中", "#u/name 中 a.b 中"),
    ],
    ids=["one", "many", "private use", "name in a tag"],
)
def test_each_name_is_put_back_once(text: str, expected: str) -> None:
    """Also if a text contains the placeholder that the authors' processor writes for a name."""
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("好。《甲", "好。《甲"),
        ("好。【甲", "好。【甲"),
        ("好。《甲》。【乙", "好。甲。【乙"),
        ("《甲》乙《丙》", "《甲》乙《丙》"),
        ("好。《甲《乙》丙》", "好。《甲《乙》丙》"),
        ("\ue000《甲》", "甲"),
    ],
)
def test_brackets_that_nothing_closes_stay(text: str, expected: str) -> None:
    assert cleaned(text) == expected


def test_languages_are_those_of_the_authors_demo() -> None:
    assert len(LANGUAGES) == 31
    assert LANGUAGES["persian"] == "Persian (Farsi)"
    assert LANGUAGES["french"] == "French"


@pytest.mark.parametrize("kind", ["small"], indirect=True)
@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("user", "text", " \u200b "), "text: expected text with at least one letter or digit"),
        (Piece("user", "text", "a" * 4001), "text: expected at most 4000 characters"),
        (Piece("user", "text", "中a" * 2000), "at most 4000 characters with spaces between scripts"),
        (Piece("system", "audio", pcm=np.zeros(1919, np.float32)), "audio: expected audio of at least one frame"),
        (Piece("system", "codes", codes=np.zeros((3, 5), np.int64)), "codes: expected 4 lists of at most 750 codes"),
        (Piece("system", "codes", codes=np.full((4, 5), 16)), r"codes in \[0, 16\), got 4 of 5, up to 16"),
    ],
    ids=["empty", "long", "long when cleaned", "short recording", "codebooks", "codes"],
)
def test_invalid_pieces_are_refused(opened: tuple[Family, Template], piece: Piece, message: str) -> None:
    family, template = opened
    pieces = (piece,) if piece.role == "user" else (piece, Piece("user", "text", TEXT))
    with pytest.raises(InvalidRequest, match=message):
        template.write(family.tasks[0], pieces, None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_release(tmp_path_factory.mktemp("checkpoint"))


def heard(pcm: np.ndarray, sample_rate: int = 24_000) -> dict[str, Any]:
    """Return the inputs of a request in the voice of a recording."""
    turns = [{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "a"}]
    return {"messages": json.dumps(turns), "pcm_in": pcm, "sample_rate": sample_rate}


@pytest.mark.parametrize("sample_rate", [8000, 48_000])
def test_recording_of_another_rate_has_its_length(checkpoint: Path, sample_rate: int) -> None:
    raw = RawRequest(**heard(np.resize(recording(), 4 * sample_rate), sample_rate))
    rows = Preprocessor(checkpoint).prepare(raw).rows
    assert np.count_nonzero(rows[:, 0] == IDS["audio_user_slot_token_id"]) == 4 * 12.5 + 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (heard(np.zeros(61 * 24_000, np.float32)), "pcm_in: expected at most 60 s"),
        (heard(np.zeros(61 * 8000, np.float32), 8000), "pcm_in: expected at most 60 s"),
        (heard(np.zeros(48_000, np.float32)), "messages[0].audio: expected a recording of a voice, got silence"),
        (heard(np.full(24_000, np.nan, np.float32)), "pcm_in: expected"),
        (heard(np.zeros(0, np.float32)), "pcm_in: expected"),
        ({"text": "a", "options": '{"instruct": "\\ud800"}'}, "options.instruct: expected"),
        ({"text": "a", "options": json.dumps({"instruct": "a" * 4001})}, "options.instruct: expected at most 4000"),
        ({"text": "a", "options": '{"language": "klingon"}'}, "options.language: expected"),
    ],
)
def test_invalid_input_error_names_its_field(checkpoint: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Preprocessor(checkpoint).prepare(RawRequest(**inputs))
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("field", ["text", "options.instruct"])
def test_markers_in_a_text_are_spelled_or_refused(checkpoint: Path, field: str, tmp_path: Path) -> None:
    """A special token in a text is plain characters. One that the release does not mark as special is refused."""
    marked = "a <|audio_assistant_delay_slot|>"
    inputs: dict[str, Any] = {"text": marked}
    if field != "text":
        inputs = {"text": "a", "options": json.dumps({"instruct": marked})}
    delay = IDS["audio_assistant_delay_slot_token_id"]
    assert delay not in Preprocessor(checkpoint).prepare(RawRequest(**inputs)).rows[:, 0]
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    with edited(other / "tokenizer.json") as record:
        for token in record["added_tokens"]:
            token["special"] = False
    with pytest.raises(InvalidRequest, match=rf"^{field}: expected none of the model's markers, got <\|audio_assis"):
        Preprocessor(other).prepare(RawRequest(**inputs))
