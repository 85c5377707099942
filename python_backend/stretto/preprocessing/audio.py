"""Audio of a request, as a file's bytes or as samples, to mono samples at the codec's rate, within limits."""

from io import BytesIO

import numpy as np
import soundfile
import soxr

from stretto.errors import InvalidRequest

MAX_FILE_BYTES, MAX_FILES = 20_000_000, 16
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
MAX_CHANNELS = 8
MAX_PEAK = 2.0  # resampled or lossy audio overshoots 1 a little; integers taken for floats exceed it at once
FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "MPEG"})


def read_file(data: bytes, max_s: float, field: str = "audio") -> tuple[np.ndarray, int]:
    """Mono samples [n] float32 and their rate in Hz, of the bytes of a wav, flac, ogg or mp3 file of at most `max_s`.

    Nothing is decoded before the number of bytes, and no more than `max_s` whatever the header says. field: what to
    call the file in a refusal.
    """
    if not data:
        raise InvalidRequest(field, "the bytes of a wav, flac, ogg or mp3 file", "0 bytes")
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(field, f"at most {MAX_FILE_BYTES} bytes", f"{len(data)} bytes")
    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            _check_header(field, file)
            max_samples = int(max_s * file.samplerate)
            samples = file.read(max_samples + 1, dtype="float32", always_2d=True)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        expected = "a readable wav, flac, ogg or mp3 file"
        raise InvalidRequest(field, expected, f"an error: {error.error_string}") from error
    if len(samples) > max_samples:
        raise InvalidRequest(field, f"at most {max_s:g} s", "more")
    pcm = samples.mean(axis=1)
    _check_samples(field, pcm)
    return pcm, rate


def check_pcm(pcm: np.ndarray, sample_rate: int | None, max_s: float) -> None:
    """Raise InvalidRequest unless `pcm` is [n] float32 of at most `max_s` at a rate that makes sense."""
    if sample_rate is None:
        raise InvalidRequest("sample_rate", "the rate of pcm_in in Hz", "none")
    if not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ:
        raise InvalidRequest("sample_rate", f"a rate in [{MIN_RATE_HZ}, {MAX_RATE_HZ}] Hz", sample_rate)
    if pcm.ndim != 1 or pcm.dtype != np.float32:
        raise InvalidRequest("pcm_in", "mono samples [n] float32", f"{list(pcm.shape)} {pcm.dtype}")
    if len(pcm) > int(max_s * sample_rate):
        raise InvalidRequest("pcm_in", f"at most {max_s:g} s", f"{len(pcm) / sample_rate:.1f} s")
    _check_samples("pcm_in", pcm)


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
