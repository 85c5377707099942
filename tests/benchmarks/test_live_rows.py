from pathlib import Path

import pytest

from stretto.engine.environment import prepare_environment
from tests.tiers import by_night

pytestmark = pytest.mark.engine
prepare_environment()

from benchmarks.live_rows import Arms, make_checkpoint, measure  # noqa: E402


@pytest.mark.parametrize("family", ["kyutai-stt", *by_night("moshi")])
async def test_live_frames_are_sent_in_one_message_or_per_session(tmp_path: Path, family: str) -> None:
    """Every arm runs to its end, and leaves nothing in the engine."""
    arms = Arms(make_checkpoint(tmp_path, family), 10, 20)
    await arms.live(3, 3)
    assert arms.num_messages == 20
    await arms.live(3, 2, is_apart=True)
    assert arms.num_messages == 40
    record = await measure(arms, 10, 1)
    assert set(record["cpu_ms_per_step"]) == {"recordings", "live", "apart", "eight", "silent"}
    assert min(record["cpu_ms_per_step"].values()) > 0
    assert not arms.engine.scheduler.has_requests()
