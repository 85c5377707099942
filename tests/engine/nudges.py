"""Comparison of latents whose rounding errors grow from frame to frame, because each depends on those before it."""

import numpy as np

# Permitted rounding errors: a multiple of the effect of a change of 1e-6 in the first latent, and of the level. Each of
# some 20 frames adds an error of up to 2e-6, which grows like that change.
SPREAD, SHARE = 40, 5e-4


def assert_latents_near(found: np.ndarray, expected: np.ndarray, nudged: np.ndarray) -> None:
    """Assert that latents [T, D] match expected ones [T, D] within rounding errors.

    Args:
        found: Latents computed in float32.
        expected: Latents computed by the reference.
        nudged: Largest effect of a small change of the first latent on each later one, [T].
    """
    permitted = SPREAD * nudged + SHARE * expected.std()
    np.testing.assert_allclose((found - expected) / permitted[:, None], 0, rtol=0, atol=1)
