import random
from dataclasses import replace

import numpy as np
import pytest

from stretto.codecs.base import CodecSpec, Stateful, Windowed
from stretto.decoder.windows import FrameWindow, SoundTable, Windower
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk, Envelope, Sound
from stretto.records.flow_address import FlowAddress
from stretto.streams.layout import Segment
from tests.fakes import FakeCodec

SPEC = CodecSpec("any", 100, 4, num_codebooks=2, codebook_size=8, streaming=Windowed(left=3, right=2))


def push_all(codes: np.ndarray, sizes: list[int], spec: CodecSpec = SPEC) -> list[FrameWindow]:
    windower = Windower(spec)
    start = 0
    windows = []
    for position, size in enumerate(sizes):
        window = windower.push(codes[:, start : start + size], position == len(sizes) - 1)
        windows += [window] if window else []
        start += size
    assert start == codes.shape[1]
    return windows


def test_latents_round_trip_as_int32_and_must_be_finite() -> None:
    spec = replace(SPEC, codebook_size=0, are_latents=True)
    numbers = np.array([[-0.0, 1e-45, 3e38], [-1.0, 0.25, -3e38]], np.float32)
    (window,) = push_all(numbers.view(np.int32), [3], spec)
    assert np.array_equal(window.codes.astype(np.int32).view(np.float32), numbers)
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(InvalidRequest, match="codes: expected finite latents"):
            push_all(np.full((2, 3), number, np.float32).view(np.int32), [3], spec)


def random_sizes(total: int, rng: random.Random) -> list[int]:
    cuts = sorted(rng.choices(range(total + 1), k=rng.randint(0, 8)))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_windows_are_utterance_slices_with_full_inner_context(seed: int) -> None:
    rng = random.Random(seed)
    total = rng.randint(1, 30)
    codes = np.random.default_rng(seed).integers(0, 8, (2, total)).astype(np.int32)
    expected_first = 0
    for window in push_all(codes, random_sizes(total, rng)):
        first = window.first
        last = window.first + window.num_frames
        assert first == expected_first
        assert window.left == min(first, SPEC.left_frames)
        assert window.right == min(SPEC.right_frames, total - last) or last + window.right < total
        assert window.right == SPEC.right_frames or last + window.right == total
        assert np.array_equal(window.codes, codes[:, first - window.left : last + window.right])
        expected_first = last
    assert expected_first == total


def test_frames_wait_for_their_right_context() -> None:
    windower = Windower(SPEC)
    codes = np.zeros((2, 2), dtype=np.int32)
    assert windower.push(codes, False) is None
    assert windower.push(None, False) is None
    assert windower.push(codes[:, :1], False).shape == (0, 1, 2)
    assert windower.push(None, True).shape == (1, 2, 0)


def test_first_window_waits_for_the_required_start_frames() -> None:
    spec = replace(SPEC, streaming=Stateful(left=3, start=4))
    codes = np.zeros((2, 9), dtype=np.int32)
    assert [window.shape for window in push_all(codes, [1, 2, 1, 1, 4], spec)] == [(0, 4, 0), (3, 1, 0), (3, 4, 0)]
    assert [window.shape for window in push_all(codes[:, :3], [1, 2], spec)] == [(0, 3, 0)]  # it ends before


def test_final_push_without_frames_gives_no_window() -> None:
    assert Windower(SPEC).push(None, True) is None


def test_windower_keeps_only_the_context_frames() -> None:
    windower = Windower(SPEC)
    for _ in range(200):
        windower.push(np.zeros((2, 5), dtype=np.int32), False)
        assert windower._kept.shape[1] <= SPEC.left_frames + SPEC.right_frames


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (np.zeros((3, 4), dtype=np.int32), r"shape \[2, T\], got \[3, 4\]"),
        (np.zeros(4, dtype=np.int32), r"shape \[2, T\], got \[4\]"),
        (np.zeros((2, 4), dtype=np.float32), "integer type, got float32"),
        (np.full((2, 4), 8), r"values in \[0, 8\), got \[8, 8\]"),
        (np.array([[0, -1], [0, 0]]), r"values in \[0, 8\), got \[-1, 0\]"),
    ],
)
def test_windower_refuses_invalid_codes(codes: np.ndarray, expected: str) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        Windower(SPEC).push(codes, False)


ONE = Sound.from_arrays(np.zeros(1, np.int32), np.zeros((2, 80), np.float32), np.zeros(192, np.float32))


def test_a_codec_without_recorded_voices_refuses_them() -> None:
    with pytest.raises(InvalidRequest, match="fake has no recorded voices"):
        SoundTable(FakeCodec(), 1).acquire(ONE)


def test_recorded_sound_round_trips_and_stays_out_of_logs() -> None:
    flow = FlowAddress("stretto_flow_1_" + "0" * 32, 1, 1)
    envelope = Envelope("a", flow, Chunk(0, Segment.AUDIO, sound=replace(ONE, tokens=b"\x01\x02\x00\x00")))
    read = Envelope.from_bytes("chunk", envelope.to_bytes())
    assert read == envelope
    assert "x01" not in repr(read)
    assert "tokens" not in repr(read)
    assert replace(ONE, tokens=bytes([0, 0, 0, 1])).digest != ONE.digest
    changed = replace(envelope, chunk=Chunk(0, Segment.AUDIO, sound=replace(ONE, tokens=bytes(4100))))
    with pytest.raises(InvalidRequest, match=r"chunk.*sound.tokens: expected.*length <= 4096"):
        Envelope.from_bytes("chunk", changed.to_bytes())
