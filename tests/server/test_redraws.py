"""The bundled model's speech is the same before the frame from which it is drawn anew."""

from typing import Any

import numpy as np
import pytest

from stretto_client import SpeechClient
from tests.server.conftest import Server

pytestmark = pytest.mark.server
TEXT = "Your flight to Lisbon leaves from gate twenty."
FRAME = 20


async def test_samples_before_the_first_new_frame_stay_the_same(server: Server) -> None:
    """Also if they are converted to another rate, within the lookahead that the profile has."""
    async with SpeechClient(f"localhost:{server.grpc}") as client:
        profile = await client.profile()
        for sample_rate in (24_000, 16_000):
            options: Any = {"seed": 1, "chunking": {"deterministic": True}, "sample_rate": sample_rate}

            async def spoken(frames: list[int], options: Any = options) -> np.ndarray:
                stream = client.speak(TEXT, check="off", redraw_from=frames, **options)
                return np.concatenate([event.pcm async for event in stream if event.pcm is not None])

            first = await spoken([])
            again = await spoken([FRAME])
            kept = int((FRAME - profile.lookahead_frames) * sample_rate / profile.frame_rate)
            np.testing.assert_array_equal(again[:kept], first[:kept])
            assert not np.array_equal(again, first)
        assert not np.array_equal((await spoken([0]))[:kept], first[:kept])
        np.testing.assert_array_equal(await spoken([FRAME]), again)
