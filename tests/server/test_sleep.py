"""A server that sleeps when idle: its models leave the memory, and a request brings them back."""

from pathlib import Path

import numpy as np
import pytest

from stretto.launcher.processes import descendants
from tests.server.conftest import REPOSITORY, served_repository

pytestmark = [pytest.mark.server, pytest.mark.nightly]  # by day tests/launcher/test_sleep.py, tests/proxy/test_sleep.py


def test_reply_after_sleep_equals_the_one_before(tmp_path: Path) -> None:
    request = {"seed": 7, "max_audio_s": 1.6}
    with served_repository(tmp_path, REPOSITORY, "--idle-s", "3") as server:
        assert server.launcher is not None
        before = server.ask(request, text="the river and the green garden")
        server.until(lambda: server.state() == "asleep")
        server.until(lambda: not [process for process in descendants(server.launcher.pid) if process.is_worker])
        after = server.ask(request, text="the river and the green garden")
        assert server.said.count("a request wakes the server") == 1
    assert before.error is after.error is None
    assert after.report["num_frames"] == before.report["num_frames"]
    np.testing.assert_allclose(after.pcm, before.pcm, atol=1e-4)
