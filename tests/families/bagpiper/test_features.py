"""Features are Whisper's, of the audio alone."""

import numpy as np
import pytest
from stretto.families.audio_format import AudioFormat
from stretto.families.bagpiper.features import HOP, log_mel

PCM = (0.1 * np.sin(np.arange(16_123) * 0.05) + 0.02).astype(np.float32)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_features_cover_the_audio_and_no_more(do_normalize: bool) -> None:
    features = log_mel(PCM, AudioFormat(128, do_normalize=do_normalize))
    assert features.shape == (-(-len(PCM) // HOP), 128)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


def test_a_normalised_waveform_s_level_does_not_matter() -> None:
    loud, quiet = (log_mel(PCM * scale, AudioFormat(do_normalize=True)) for scale in (1.0, 0.1))
    np.testing.assert_allclose(loud, quiet, atol=1e-3)
    raw = log_mel(PCM * 0.1, AudioFormat(do_normalize=False))
    assert np.abs(raw - quiet).max() > 0.1
