"""VoxCPM2 through the real server (release, converter, repository, server, client) equals the authors' samples."""

import numpy as np
import pytest

from plugins.voxcpm2.tests.voxcpm2_release import MODES, convert_release, reply, request
from stretto.decoder.reply_end import ended_in_pause
from tests.server.conftest import ServedCheckpoint, serves

# By night: tests/engine/test_voxcpm2.py compares the same replies; prompts and codec have tests of their own.
pytestmark = [pytest.mark.server, pytest.mark.nightly]
TOLERANCE = 5e-3  # of samples: each patch is made from those before it, and carries on their rounding


served = serves(convert_release)


@pytest.mark.parametrize("mode", MODES)
def test_served_speech_matches_the_published_code(served: ServedCheckpoint, mode: str) -> None:
    """Samples of a continuation begin after those of the recording's last patches."""
    expected, asked = reply("plain", mode), request(mode)
    inputs = {name: value for name in ("messages", "audio") if (value := getattr(asked, name)) is not None}
    answer = served.server.ask(asked.options, **inputs)
    assert answer.error is None
    pcm = answer.pcm
    last = (
        expected.pcm_last if expected.has_ended else ended_in_pause(expected.pcm_last, len(expected.pcm_last), 48_000)
    )
    assert len(pcm) == expected.num_samples
    np.testing.assert_allclose(pcm[: len(expected.pcm)], expected.pcm, atol=TOLERANCE)
    np.testing.assert_allclose(pcm[-len(last) :], last, atol=TOLERANCE)
    assert answer.report["num_frames"] == len(expected.latents)
    assert answer.report["finish_reason"] == ("stop" if expected.has_ended else "length")
