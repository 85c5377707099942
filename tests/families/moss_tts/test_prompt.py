"""MOSS-TTS prompts: rows equal those of the authors' processor, and texts are cleaned as there."""

import numpy as np
import pytest

from benchmarks.checkpoints.random_moss import IDS
from scripts.moss_tts_replies import INSTRUCTION, LANGUAGE, TEXT, TEXTS, heard_codes, recording
from stretto.codecs.base import load_codec
from stretto.errors import InvalidRequest
from stretto.families.base import Family
from stretto.families.moss_tts.cleaning import cleaned
from stretto.families.moss_tts.family import LANGUAGES
from stretto.families.moss_tts.prompt import levelled, open_template
from stretto.families.plugin import family_at
from stretto.families.prompting import PLAIN, Manner, Piece, Template
from tests.moss_release import convert_release, stored

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
        (Piece("system", "audio", pcm=np.zeros(1919, np.float32)), "audio: expected audio of at least one frame"),
        (Piece("system", "codes", codes=np.zeros((3, 5), np.int64)), "codes: expected 4 lists of at most 750 codes"),
        (Piece("system", "codes", codes=np.full((4, 5), 16)), r"codes in \[0, 16\), got 4 of 5, up to 16"),
    ],
    ids=["empty", "long", "short recording", "codebooks", "codes"],
)
def test_invalid_pieces_are_refused(opened: tuple[Family, Template], piece: Piece, message: str) -> None:
    family, template = opened
    pieces = (piece,) if piece.role == "user" else (piece, Piece("user", "text", TEXT))
    with pytest.raises(InvalidRequest, match=message):
        template.write(family.tasks[0], pieces, None)
