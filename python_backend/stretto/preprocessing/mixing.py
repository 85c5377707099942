"""Mixing of a recording's channels to mono."""

from itertools import product

import numpy as np

CANCELLED = 0.5  # channels cancel if the energy of their mean, relative to uncorrelated channels, is lower
QUIET_MEAN = 0.3  # energy of the mean, relative to the loudest channel, below which its level is restored


class Mixer:
    """Mean of all channels, for samples that arrive in blocks.

    The mean of channels that cancel, for example because one of them is inverted, loses the recording. Such channels
    are mixed with the signs that preserve most energy (`better_signs`). If only one channel has sound, the mean is
    quieter, so it is scaled to the level of the loudest channel. All other means remain unchanged. Decisions use the
    energy of the whole recording, so they do not depend on the blocks.

    Args:
        signs: Sign of each channel, float32 [C]; None to leave the signs unchanged.
    """

    def __init__(self, signs: np.ndarray | None = None) -> None:
        self._signs = signs
        self._blocks = list[np.ndarray]()
        self._products = self._sums = np.zeros(0)
        self._num_samples = 0
        self._peak = 0.0

    def add(self, block: np.ndarray) -> None:
        """Append samples, float32 [n, C]."""
        if self._signs is not None:
            block = block * self._signs
        self._blocks.append(block.mean(axis=1))
        if block.shape[1] > 1 and len(block):
            wide = block.astype(np.float64)
            with np.errstate(invalid="ignore"):  # infinite samples are refused later
                products = wide.T @ wide
                sums = wide.sum(0)
                self._products = self._products + products if self._num_samples else products
                self._sums = self._sums + sums if self._num_samples else sums
            self._num_samples += len(block)
            self._peak = max(self._peak, float(np.abs(block).max()))

    def _covariance(self) -> np.ndarray:
        """Return the covariance of the channels times the number of samples, [C, C]."""
        mean = self._sums / self._num_samples
        with np.errstate(invalid="ignore"):
            return self._products - self._num_samples * np.outer(mean, mean)

    def better_signs(self) -> np.ndarray | None:
        """Return signs [C] for a mean of channels that otherwise cancel each other; None if they do not cancel.

        With these signs, the mean has at least as much energy as the mean of uncorrelated channels.
        """
        if not self._num_samples:
            return None
        covariance = self._covariance()
        if not covariance.sum() < CANCELLED * covariance.trace():
            return None
        loudest = int(covariance.diagonal().argmax())
        choices = [np.array(signs) for signs in product((1.0, -1.0), repeat=len(covariance)) if signs[loudest] > 0]
        return max(choices, key=lambda signs: signs @ covariance @ signs).astype(np.float32)

    def pcm(self) -> np.ndarray:
        """Return the mono samples of all blocks, float32 [n]."""
        mono = np.concatenate(self._blocks) if self._blocks else np.zeros(0, np.float32)
        return mono if not self._num_samples else mono * np.float32(self._gain(mono))

    def _gain(self, mono: np.ndarray) -> float:
        """Return the gain for the mean: 1 unless the mean is much quieter than the loudest channel.

        The scaled mean exceeds neither 1 nor the peak of the channels, whichever is larger.
        """
        covariance = self._covariance()
        loudest = covariance.diagonal().max()
        energy = covariance.sum() / len(covariance) ** 2
        if not 0 < energy < QUIET_MEAN * loudest:
            return 1.0
        most = max(1.0, self._peak) / max(float(np.abs(mono).max()), 1e-30)
        return float(min(round(np.sqrt(loudest / energy), 3), most))
