"""Utterances in flight, counted from outside the server."""

from pathlib import Path

from stretto.serving.drain import num_active_utterances
from stretto.triton_io.flow import FlowTable


def test_only_this_servers_utterances_count(tmp_path: Path) -> None:
    ours, theirs = FlowTable.create(10, 4, tmp_path), FlowTable.create(100, 4, tmp_path)
    theirs.claim()
    assert num_active_utterances(10, tmp_path) == 0
    slots = [ours.claim(), ours.claim()]
    assert num_active_utterances(10, tmp_path) == 2
    slots[0].release()
    assert num_active_utterances(10, tmp_path) == 1


def test_a_server_without_a_table_has_none(tmp_path: Path) -> None:
    assert num_active_utterances(10, tmp_path) == 0
