"""Audio of a request, as a file's bytes or as samples, to mono samples at the codec's rate, within limits.

No more than numpy and two audio libraries is imported here: processes that do nothing else start with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from stretto.errors import InvalidRequest

MAX_FILE_BYTES, MAX_FILES = 20_000_000, 16
MAX_REQUEST_BYTES = 64_000_000  # of audio in all inputs of a request
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
MAX_CHANNELS = 8
MAX_PEAK = 2.0  # resampled or lossy audio overshoots 1 a little; integers taken for floats exceed it at once
FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG"})
BLOCK_SAMPLES = 1 << 16  # decoded at once, of each channel


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Audio as it came: the bytes of a file, or without `is_file` mono samples [n] float32 at `sample_rate` Hz.

    field: what to call it in a refusal.
    """

    field: str
    data: bytes | memoryview | np.ndarray
    is_file: bool = True
    sample_rate: int | None = None


AudioReader = Callable[[Recording, float, int], np.ndarray]
"""Reads a recording of at most so many seconds as mono samples [n] float32 at a rate in Hz; raises InvalidRequest."""


def read_recording(recording: Recording, max_s: float, target_rate: int) -> np.ndarray:
    """The AudioReader that reads where it is called."""
    if recording.is_file:
        pcm, sample_rate = read_file(bytes(recording.data), max_s, recording.field)
        return resample(pcm, sample_rate, target_rate)
    assert isinstance(recording.data, np.ndarray), recording.field
    return read_samples(recording.data, recording.sample_rate, max_s, target_rate)


def read_samples(pcm: np.ndarray, sample_rate: int | None, max_s: float, target_rate: int) -> np.ndarray:
    """`pcm` [n] float32, checked, as [n'] float32 at `target_rate`."""
    return resample(pcm, check_pcm(pcm, sample_rate, max_s), target_rate)


def check_file_size(num_bytes: int, field: str) -> None:
    """Raise InvalidRequest unless a file of so many bytes may be read."""
    if not num_bytes:
        raise InvalidRequest(field, "the bytes of a wav, flac, ogg or mp3 file", "0 bytes")
    if num_bytes > MAX_FILE_BYTES:
        raise InvalidRequest(field, f"at most {MAX_FILE_BYTES} bytes", f"{num_bytes} bytes")


def read_file(data: bytes, max_s: float, field: str = "audio") -> tuple[np.ndarray, int]:
    """Mono samples [n] float32 and their rate in Hz, of the bytes of a wav, flac, ogg or mp3 file of at most `max_s`.

    Nothing is decoded before the number of bytes, and no more than `max_s` whatever the header says. field: what to
    call the file in a refusal.
    """
    check_file_size(len(data), field)
    return decode(BytesIO(data), max_s, field)


def decode(source: BinaryIO | int, max_s: float, field: str) -> tuple[np.ndarray, int]:
    """As `read_file`, of a file object or a file descriptor, which stays open."""
    try:
        with soundfile.SoundFile(source, closefd=False) as file:
            _check_header(field, file)
            rate, max_samples = file.samplerate, int(max_s * file.samplerate)
            pcm = _mix(file, max_samples + 1)
    except soundfile.LibsndfileError as error:
        expected = "a readable wav, flac, ogg or mp3 file"
        raise InvalidRequest(field, expected, f"an error: {error.error_string}") from error
    if len(pcm) > max_samples:
        raise InvalidRequest(field, f"at most {max_s:g} s", "more")
    _check_samples(field, pcm)
    return pcm, rate


def _mix(file: soundfile.SoundFile, max_samples: int) -> np.ndarray:
    """The mean of all channels, of at most `max_samples`; channels are held one block at a time, as they take most."""
    blocks: list[np.ndarray] = []
    left = max_samples
    while left > 0:
        block = file.read(min(left, BLOCK_SAMPLES), dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block.mean(axis=1))
        left -= len(block)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def check_pcm(pcm: np.ndarray, sample_rate: int | None, max_s: float) -> int:
    """The rate of `pcm`; InvalidRequest unless it is [n] float32 of at most `max_s` at a rate that makes sense."""
    if sample_rate is None:
        raise InvalidRequest("sample_rate", "the rate of pcm_in in Hz", "none")
    if not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ:
        raise InvalidRequest("sample_rate", f"a rate in [{MIN_RATE_HZ}, {MAX_RATE_HZ}] Hz", sample_rate)
    if pcm.ndim != 1 or pcm.dtype != np.float32:
        raise InvalidRequest("pcm_in", "mono samples [n] float32", f"{list(pcm.shape)} {pcm.dtype}")
    if len(pcm) > int(max_s * sample_rate):
        raise InvalidRequest("pcm_in", f"at most {max_s:g} s", f"{len(pcm) / sample_rate:.1f} s")
    _check_samples("pcm_in", pcm)
    return sample_rate


def resample(pcm: np.ndarray, sample_rate: int, target_rate: int) -> np.ndarray:
    """`pcm` [n] float32 at `sample_rate` as [n'] float32 at `target_rate`, both in Hz."""
    return pcm if sample_rate == target_rate else soxr.resample(pcm, sample_rate, target_rate)


def _check_header(field: str, file: soundfile.SoundFile) -> None:
    if file.format not in FORMATS:
        raise InvalidRequest(field, "a wav, flac, ogg or mp3 file", file.format)
    if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ:
        raise InvalidRequest(field, f"a rate in [{MIN_RATE_HZ}, {MAX_RATE_HZ}] Hz", file.samplerate)
    if file.channels > MAX_CHANNELS:
        raise InvalidRequest(field, f"at most {MAX_CHANNELS} channels", file.channels)


def _check_samples(field: str, pcm: np.ndarray) -> None:
    if not len(pcm):
        raise InvalidRequest(field, "at least one sample", "none")
    if not np.isfinite(pcm).all():
        raise InvalidRequest(field, "finite samples", "NaN or infinity")
    peak = float(np.abs(pcm).max())
    if peak > MAX_PEAK:
        raise InvalidRequest(field, "samples in [-1, 1]", f"a peak of {peak:g}")
