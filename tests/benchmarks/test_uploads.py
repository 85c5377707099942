"""The upload benchmark counts outcomes correctly."""

import asyncio

import pytest

from benchmarks.large_audio import FILES, large_request, outcome_of, take_round
from tests.client.fake_server import Chunk, FakeServer


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        ("", "answered"),
        ("in ensemble 'speech', full: 256 MiB wait", "full"),
        ("Socket closed", "Socket closed"),
    ],
)
def test_other_failures_are_counted_by_their_error(error: str, outcome: str) -> None:
    assert outcome_of(error) == outcome


async def test_every_client_sends_at_least_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "prepared", lambda: b"a small one")
    triton = FakeServer(lambda _: [Chunk(0, text="a cat"), Chunk(1, is_final=True, is_last=True)])
    address = await triton.start()
    outcomes = await asyncio.to_thread(take_round, address, large_request("prepared"), 3, 1e-9)
    await triton.stop()
    assert sum(outcomes.values()) == len(triton.requests) >= 3
    assert outcomes.keys() == {"answered"}
