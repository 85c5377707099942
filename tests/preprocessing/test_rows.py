"""Codes are placed in rows as by a slow loop."""

import numpy as np
import pytest

from stretto.family.prompting import code_rows, frame_rows, stream0_rows
from stretto.streams.layout import StreamLayout

LAYOUT = StreamLayout(
    vocab_size=40,
    audio=(range(10), range(10, 14), range(20, 24), range(30, 34)),
    delays=(0, 2, 0, 3),
    codebook_streams=(2, 1, 3),
    num_input_only=2,
    pad_id=39,
)


def slow_rows(codes: np.ndarray) -> list[list[int]]:
    num_frames = codes.shape[1]
    rows = []
    for row in range(num_frames + 3):
        ids = [39] * 6
        for codebook, stream in enumerate((2, 1, 3)):
            frame = row - LAYOUT.delays[stream]
            if 0 <= frame < num_frames:
                ids[stream] = LAYOUT.audio[stream][int(codes[codebook, frame])]
        rows.append(ids)
    return rows


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 9])
def test_code_rows_apply_the_stream_delays(num_frames: int) -> None:
    codes = np.random.default_rng(num_frames).integers(0, 4, (3, num_frames))
    rows = code_rows(LAYOUT, codes)
    assert rows.dtype == np.int32
    assert rows.tolist() == slow_rows(codes)


@pytest.mark.parametrize("codes", [np.zeros((2, 3), int), np.full((3, 3), 4), np.full((3, 3), -1)])
def test_codes_of_wrong_shape_or_range_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected codes \[3, T\] in \[0, 4\)"):
        code_rows(LAYOUT, codes)


def test_text_ids_are_on_stream_0() -> None:
    assert stream0_rows(LAYOUT, [5, 6]).tolist() == [[5, *[39] * 5], [6, *[39] * 5]]


def test_frame_rows_apply_delays_and_fill_values() -> None:
    codes = np.arange(8).reshape(4, 2) % 4
    expected = []
    for row in range(2 + 3):
        ids = [7, 11, 21, 31, 39, 39]
        for stream in range(4):
            frame = row - LAYOUT.delays[stream]
            if 0 <= frame < 2:
                ids[stream] = LAYOUT.audio[stream][int(codes[stream, frame])]
        expected.append(ids)
    assert frame_rows(LAYOUT, codes, (7, 11, 21, 31)).tolist() == expected
