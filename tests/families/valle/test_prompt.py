"""VALL-E prompts, row by row in ESPnet's layout."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.checkpoints.random_espnet import KNOWN, convert
from stretto.errors import InvalidRequest
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from tests.valle_release import REPLIES, open_valle, rows_of

VOICE = [[(k + frame) % 12 for frame in range(8)] for k in range(8)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("valle"))


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


def asked(turns: str) -> RawRequest:
    return RawRequest(messages=turns)


def voiced(codes: object, text: str = "a well") -> RawRequest:
    return asked(f'[{{"role": "system", "codes": {codes}}}, {{"role": "user", "text": "{text}"}}]')


def test_rows_match_the_authors(checkpoint: Path) -> None:
    """The rows are ESPnet's prefix, followed by a row with only the marker."""
    family = family_at(checkpoint)
    template = open_valle(checkpoint, family)
    for reply in REPLIES:
        rows = rows_of(reply, template, family)
        np.testing.assert_array_equal(rows[:-1], reply["prefix"])
        assert rows[-1].tolist() == [KNOWN.codec_marker] + [KNOWN.nothing] * 7


def test_voice_prompt_is_truncated_or_padded(preprocessor: Preprocessor) -> None:
    for length in (8, 6, 2):
        rows = preprocessor.prepare(voiced([line[:length] for line in VOICE])).rows
        heard = rows[-7:-1]
        expected = np.zeros((6, 8), np.int64)
        for frame in range(min(length, 6)):
            for k in range(8):
                expected[frame, k] = 256 + 12 * k + VOICE[k][frame]
        np.testing.assert_array_equal(heard, expected)


def test_recording_prompt_matches_its_codes_prompt(preprocessor: Preprocessor) -> None:
    pcm = (np.sin(np.arange(16_000) ** 1.2 / 90) / 2).astype(np.float32)
    turns = '[{"role": "system", "audio": "pcm_in"}, {"role": "user", "text": "a well"}]'
    heard = preprocessor.prepare(RawRequest(messages=turns, pcm_in=pcm, sample_rate=16_000)).rows
    codes = preprocessor.codec.encode(pcm)
    assert codes.shape == (8, 50)
    np.testing.assert_array_equal(heard, preprocessor.prepare(voiced(codes.tolist())).rows)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawRequest(text="a well"), "messages: expected a system turn with a recording of the voice, got none"),
        (voiced(VOICE[:7]), r"messages\[0\].codes: expected 8 streams, got 7 streams"),
        (voiced([[12] * 2] * 8), r"messages\[0\].codes: expected codes in \[0, 12\), got 12"),
        (voiced([[1] * 1501] * 8), r"messages\[0\].codes: expected at most 1500 frames, got 1501 frames"),
        (voiced(VOICE, ""), r"messages\[1\].text: expected text of at least one character"),
        (voiced(VOICE, "a" * 4001), r"messages\[1\].text: expected at most 4000 characters, got 4001 characters"),
        (voiced(VOICE, "well " * 200), r"expected a prompt of at most 255 rows"),
        (
            asked('[{"role": "system", "text": "calm"}, {"role": "user", "text": "a"}]'),
            r"messages\[0\]: expected only audio for task 'tts', got text",
        ),
        (
            asked(f'[{{"role": "system", "codes": {VOICE}}}, {{"role": "user", "codes": {VOICE}}}]'),
            r"messages\[1\]: expected text for task 'tts', got audio",
        ),
    ],
)
def test_unspeakable_prompts_are_refused(preprocessor: Preprocessor, raw: RawRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        preprocessor.prepare(raw)
