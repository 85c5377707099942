"""Segments of OpusLM prompts: audio is encoded, given as codes, or refused."""

import numpy as np
import pytest

from stretto.errors import InvalidRequest
from stretto.families.opuslm.family import opuslm
from stretto.families.opuslm.prompt import SegmentWriter
from stretto.family.prompting import Piece
from stretto.family.text import Subwords
from tests.fakes import FrameCounter
from tests.families.letters import Letters
from tests.families.opuslm.rows import segments
from tests.small_vocabularies import SMALL_OPUSLM

FAMILY = opuslm(SMALL_OPUSLM)
WRITER = segments(FAMILY)


class OneCode:
    """Fake tokenizer that returns the same semantic code in every frame, and one frame more than the codec."""

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        return np.full(len(pcm) // 320 + 1, 7)


class Deaf:
    """Fake tokenizer that returns no codes."""

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        return np.zeros(0, np.int64)


def test_semantic_code_0_becomes_the_pad_as_in_training() -> None:
    """ESPnet's `SpeechLMPreprocessor`: where(value == pad, pad, value + bias); codes of the codec never are 0 there,
    where those of the first codebook begin at 5000."""
    codes = np.zeros((9, 4), int)
    codes[0] = [3, 0, 0, 1]
    for write in (WRITER.audio, WRITER.voice):
        rows = write(Piece("user", "", codes=codes))[1:]
        assert rows[:5, 0].tolist() == [259, 0, 0, 257, 0]
        for stream in range(1, 9):
            assert rows[stream : stream + 4, stream].tolist() == [276 + 12 * (stream - 1)] * 4


def test_voice_prompt_is_truncated_to_500_frames() -> None:
    codes = np.zeros((9, 700), int)
    codes[:, 500:] = 1
    rows = WRITER.voice(Piece("system", "", codes=codes))
    assert rows.shape == (1 + 508, 9)
    assert np.array_equal(rows, WRITER.voice(Piece("system", "", codes=codes[:, :500])))


def test_audio_shorter_than_a_frame_is_refused() -> None:
    writer = SegmentWriter(FAMILY, Subwords(Letters(), FAMILY), FrameCounter(320, 8, 12), Deaf())
    for write in (writer.audio, writer.voice):
        with pytest.raises(InvalidRequest, match=r"audio: expected audio of at least one frame .*, got 320 samples"):
            write(Piece("user", "audio", pcm=np.zeros(320, np.float32)))


def test_audio_codes_are_cut_to_the_shorter_tokenizer_output() -> None:
    writer = SegmentWriter(FAMILY, Subwords(Letters(), FAMILY), FrameCounter(320, 8, 12), OneCode())
    heard = writer.audio(Piece("user", "audio", pcm=np.zeros(960, np.float32)))
    codes = np.concatenate([np.full((1, 3), 7), np.tile(np.arange(3), (8, 1))])
    assert np.array_equal(heard, writer.audio(Piece("user", "", codes=codes)))


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (
            Piece("user", "audio", pcm=np.zeros(960, np.float32)),
            "audio: expected codes [9][T] in messages, because the checkpoint has no ssl_tokenizer/",
        ),
        (Piece("user", "m.codes", codes=np.zeros((8, 3), int)), "m.codes: expected 9 streams, got 8 streams"),
        (Piece("user", "m.codes", codes=np.full((9, 1), 12)), "m.codes[1]: expected codes in [0, 12), got 12"),
        (Piece("user", "m.codes", codes=np.full((9, 1), 20)), "m.codes[0]: expected codes in [0, 20), got 20"),
        (Piece("user", "m.codes", codes=np.zeros((9, 1501), int)), "m.codes: expected at most 1500 frames (30 s)"),
    ],
)
def test_unsupported_audio_input_is_refused(piece: Piece, message: str) -> None:
    for write in (WRITER.audio, WRITER.voice):
        with pytest.raises(InvalidRequest) as caught:
            write(piece)
        assert str(caught.value).startswith(message)
