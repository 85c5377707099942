"""Live Moshi sessions through the real server: sessions side by side, and one session of 20 minutes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import Launch
from benchmarks.live_sessions import measure, measure_long, served
from plugins.kyutai.lab.random_moshi import CONFIG

pytestmark = [pytest.mark.server, pytest.mark.nightly]
NUM_ROWS = 15_000  # 20 minutes
MAX_GROWTH_MB = 16.0  # of each process, after the first quarter
MAX_TRITON_GROWTH_MB = 160.0  # of tritonserver, which keeps about 8 KB for each part and response of a session


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launch, Path]]:
    with served(tmp_path_factory.mktemp("sessions"), 3, NUM_ROWS) as (launch, checkpoint):
        yield launch, checkpoint


async def test_live_codes_equal_recording_codes_for_every_frame(launched: tuple[Launch, Path]) -> None:
    """`measure` compares them; every frame of every session is answered and counted once."""
    found = await measure(launched[0], 3, 4.0)
    assert found["frames"] == found["engine_frames"] == 3 * 50
    assert found["live_over_recording"] > 0


async def test_twenty_minute_session_is_exact_with_bounded_memory(launched: tuple[Launch, Path]) -> None:
    """KV blocks are those of the attention window, and no row is computed again."""
    found = await measure_long(*launched, NUM_ROWS)
    assert CONFIG["context"] * 100 < NUM_ROWS
    assert found["frames_that_differ"] == found["rows_recomputed"] == 0
    assert 0 < found["kv_usage_last_quarter"] <= found["kv_usage_first_quarter"]
    for name, end_mb in found["rss_mb_last_quarter"].items():
        most = MAX_TRITON_GROWTH_MB if name == "tritonserver" else MAX_GROWTH_MB
        assert end_mb - found["rss_mb_first_quarter"][name] < most, name
