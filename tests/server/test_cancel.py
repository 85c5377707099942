"""Client disconnects: no further work is done for the client."""

import time

import pytest

from tests.patience import PATIENCE_S
from tests.server.conftest import Server
from tests.tiers import by_night

pytestmark = pytest.mark.server

LONG = "the river and the green garden and the window and the morning and the door"
ENDLESS = {"seed": 1, "max_audio_s": 9.6, "audio": {"min_rows": 239}}


def cancel_after(server: Server, num_responses: int) -> None:
    """Cancel a running stream after `num_responses` responses, and wait until the language model has released it."""
    table = server.table()
    is_running = False
    deadline = time.monotonic() + PATIENCE_S
    while not is_running:
        stream = server.stream(ENDLESS, text=LONG)
        while num_responses == 0 == table.num_active():
            assert time.monotonic() < deadline
        for _ in range(num_responses):
            stream.next()
        is_running = table.num_active() > 0  # a busy machine may hand responses on once all have been made
        stream.cancel()
    server.until(lambda: table.num_active() == 0)
    table.close()


@pytest.mark.parametrize("num_responses", [1, *by_night(0, 4)])
def test_language_model_stops_when_the_client_disconnects(server: Server, num_responses: int) -> None:
    before, num_left = server.metric("cancelled_total"), 0
    while num_left < 5 or server.metric("cancelled_total") < before + 5:
        cancel_after(server, num_responses)
        num_left += 1
    assert server.metric("cancelled_total") <= before + num_left


@pytest.mark.nightly  # by day one stream after another
def test_cancelling_many_streams_frees_all_slots(server: Server) -> None:
    table = server.table()
    for _ in range(3):
        streams = [server.stream({"seed": i}, text=LONG) for i in range(12)]
        streams[0].next()
        for stream in streams:
            stream.cancel()
    server.until(lambda: table.num_active() == 0)
    table.close()
    answer = server.ask({"seed": 1, "max_audio_s": 1.0}, text=LONG)
    assert answer.error is None
    server.until(lambda: server.metric("pairs") == 0)


@pytest.mark.nightly  # by day test_bad_input.py, beside a running stream
def test_client_disconnect_does_not_disturb_other_clients(server: Server) -> None:
    alone = server.ask({"seed": 5, "max_audio_s": 2.0}, text="two green windows")
    staying = server.stream({"seed": 5, "max_audio_s": 2.0}, text="two green windows")
    leaving = server.stream({"seed": 6}, text=LONG)
    staying.next()
    leaving.cancel()
    answer = staying.listen()
    assert answer.error is None
    assert answer.report["num_frames"] == alone.report["num_frames"]
    assert answer.pcm.tolist() == pytest.approx(alone.pcm.tolist(), abs=1e-4)
