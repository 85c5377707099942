"""End of a reply that has reached a limit, without a click and not in the middle of a word."""

import numpy as np

FADE_S = 0.005
PAUSE_S = 0.03
PAUSE_LEVEL = 0.1  # level of a pause relative to the speech around it


def ended_in_pause(pcm: np.ndarray, num_cut: int, sample_rate: int) -> np.ndarray:
    """Cut speech that has reached a limit at the last pause near its end, if there is one, and fade it out.

    Args:
        pcm: float32 samples [n], of which the last `num_cut` may contain the pause.
    """
    size = round(PAUSE_S * sample_rate)
    end = pcm[-num_cut:]
    num_blocks = len(end) // size
    levels = np.sqrt(np.mean(np.square(end[len(end) - num_blocks * size :].reshape(num_blocks, size)), axis=1))
    pauses = np.flatnonzero(levels <= PAUSE_LEVEL * levels.max(initial=0.0))
    num_cut = (num_blocks - int(pauses[-1])) * size - size // 2 if len(pauses) else 0
    return faded_out(pcm[: len(pcm) - num_cut], sample_rate)


def faded_out(pcm: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return samples [n] whose last 5 ms fade to zero, because an abrupt end at a loud sample clicks."""
    size = min(len(pcm), round(FADE_S * sample_rate))
    left = np.arange(size - 1, -1, -1) / size  # 1 to 0; a polynomial, so that every processor computes the same
    return np.concatenate(
        [pcm[: len(pcm) - size], pcm[len(pcm) - size :] * (left * left * (3 - 2 * left)).astype(pcm.dtype)]
    )
