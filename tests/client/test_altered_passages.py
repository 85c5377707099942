"""Altered passages of a clip are found and named; encoding, level and delay are no alteration."""

import io
from collections.abc import Callable

import av
import numpy as np
import pytest
import soxr

from stretto_client.altered_passages import RATE, Passage, altered_passages
from stretto_gateway.encoding import make_encoder
from tests.recordings import sentence
from tests.tiers import by_night

FILE_RATE = 24_000
SPEECH = sentence(FILE_RATE)
GENERATED = soxr.resample(SPEECH, FILE_RATE, RATE).astype(np.float32)
OTHER = SPEECH[::-1]
FORMATS = ["wav", "mp3", "opus", *by_night("mp3 32000", "opus 24000", "opus 12000", "aac", "flac")]


def decoded(pcm: np.ndarray, file_format: str) -> np.ndarray:
    """Return samples at RATE that were encoded in a format, with an optional bit rate."""
    name, _, bit_rate = file_format.partition(" ")
    encoder = make_encoder(name, FILE_RATE, {}, int(bit_rate) if bit_rate else None)
    data = encoder.encode((np.clip(pcm, -1, 1) * 32_767).astype(np.int16)) + encoder.close()
    with av.open(io.BytesIO(data)) as file:
        resampler = av.AudioResampler("flt", "mono", RATE)
        frames = [frame for one in file.decode(audio=0) for frame in resampler.resample(one)]
    return np.concatenate([frame.to_ndarray()[0] for frame in (*frames, *resampler.resample(None))])


def at(seconds: float) -> int:
    return round(seconds * FILE_RATE)


def join(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


def pieces(*borders: float) -> list[np.ndarray]:
    """Return the speech, split at times in seconds."""
    return np.split(SPEECH, [at(border) for border in borders])


def replaced() -> np.ndarray:
    before, _, after = pieces(1.0, 1.5)
    return join(before, OTHER[at(0.5) : at(1.0)], after)


def inserted() -> np.ndarray:
    before, after = pieces(1.2)
    return join(before, OTHER[at(0.5) : at(1.2)], after)


def cut() -> np.ndarray:
    before, _, after = pieces(1.0, 1.6)
    return join(before, after)


def swapped() -> np.ndarray:
    first, second, third, last = pieces(0.5, 1.2, 1.9)
    return join(first, third, second, last)


def found(clip: np.ndarray) -> list[tuple[str, float, float, float]]:
    """Return the changes of passages with their start, their duration, and that of the generated speech."""
    return [
        (
            passage.change,
            pytest.approx(passage.start_s, abs=0.15),
            pytest.approx(passage.end_s - passage.start_s, abs=0.15),
            pytest.approx(passage.generated_end_s - passage.generated_start_s, abs=0.15),
        )
        for passage in altered_passages(clip, GENERATED)
    ]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        (lambda: SPEECH, []),
        (lambda: SPEECH * 0.1, []),
        (lambda: join(np.zeros(at(0.3), np.float32), SPEECH, np.zeros(at(0.05), np.float32)), []),
        (replaced, [("replaced", 1.0, 0.5, 0.5)]),
        (inserted, [("inserted", 1.2, 0.7, 0.0)]),
        (cut, [("cut", 1.0, 0.0, 0.6)]),
        (lambda: SPEECH[at(0.8) :], [("cut", 0.0, 0.0, 0.8)]),
    ],
    ids=["same", "quiet", "delayed", "replaced", "inserted", "cut", "first_cut"],
)
def test_passages_are_named(
    alter: Callable[[], np.ndarray], expected: list[tuple[str, float, float, float]], file_format: str
) -> None:
    assert found(decoded(alter(), file_format)) == expected


def test_moved_speech_is_altered() -> None:
    changes = [change for change, *_ in found(decoded(swapped(), "mp3"))]
    assert changes
    assert set(changes) <= {"replaced", "inserted", "cut"}


def test_other_speech_is_replaced_as_a_whole() -> None:
    (passage,) = altered_passages(decoded(OTHER, "mp3"), GENERATED)
    assert (passage.change, passage.start_s) == ("replaced", 0.0)
    assert passage.end_s == pytest.approx(len(SPEECH) / FILE_RATE, abs=0.1)


@pytest.mark.parametrize(
    "clip",
    [np.zeros(0), GENERATED[:800], np.zeros(4 * RATE), np.full(4 * RATE, np.float32(0.5)), np.ones(4 * RATE) * 1e30],
)
def test_clips_without_speech_are_altered(clip: np.ndarray) -> None:
    assert altered_passages(clip.astype(np.float32), GENERATED)


@pytest.mark.parametrize(
    ("passage", "text"),
    [
        (Passage("cut", 1.0, 1.0, 1.0, 1.5), "cut at 1.00 s: 0.50 s are missing"),
        (Passage("replaced", 1.0, 1.5, 1.0, 1.5), "replaced from 1.00 to 1.50 s"),
    ],
)
def test_passages_are_described(passage: Passage, text: str) -> None:
    assert str(passage) == text
