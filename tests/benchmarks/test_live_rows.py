from pathlib import Path

import pytest

from stretto.engine.environment import prepare_environment

pytestmark = [pytest.mark.engine, pytest.mark.nightly]
prepare_environment()

from benchmarks.live_rows import Arms, make_checkpoint, measure, measure_window  # noqa: E402


@pytest.mark.parametrize("family", ["kyutai-stt", "moshi"])
async def test_live_frames_are_sent_in_one_message_or_per_session(tmp_path: Path, family: str) -> None:
    """Every arm runs to its end, and leaves nothing in the engine."""
    arms = Arms(make_checkpoint(tmp_path, family), 10, 20)
    await arms.live(3, 3)
    assert arms.num_messages == 20
    await arms.live(3, 2, is_apart=True)
    assert arms.num_messages == 40
    record = await measure(arms, 10, 1)
    assert set(record["cpu_ms_per_step"]) == {"recordings", "live", "apart", "eight", "silent"}
    for part in ("cpu_ms_per_step", "planning_cpu_ms_per_step"):
        assert min(record[part].values()) > 0
    assert record["planning_over_recordings"] > 0
    assert not arms.engine.scheduler.has_requests()


async def test_steps_of_long_sessions_are_compared(tmp_path: Path) -> None:
    arms = Arms(make_checkpoint(tmp_path, context=20), 8, 60)
    record = await measure_window(arms, 20, 1)
    assert record["late_over_early"] == pytest.approx(
        record["cpu_ms_per_step"]["late"] / record["cpu_ms_per_step"]["early"], rel=1e-2
    )
    assert not arms.engine.scheduler.has_requests()
