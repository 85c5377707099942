"""Count of utterances in flight, taken from outside the server."""

from pathlib import Path

from stretto.launcher.supervisor import num_active_utterances
from stretto.triton_io.flow import FlowTable


def test_only_utterances_of_this_server_are_counted(tmp_path: Path) -> None:
    ours, theirs = FlowTable.create(10, 4, tmp_path), FlowTable.create(100, 4, tmp_path)
    theirs.claim()
    assert num_active_utterances(10, tmp_path) == 0
    slots = [ours.claim(), ours.claim()]
    assert num_active_utterances(10, tmp_path) == 2
    slots[0].release()
    assert num_active_utterances(10, tmp_path) == 1


def test_server_without_acknowledgement_table_has_no_active_utterances(tmp_path: Path) -> None:
    assert num_active_utterances(10, tmp_path) == 0


def test_forged_flow_tables_are_not_counted(tmp_path: Path) -> None:
    FlowTable.create(10, 4, tmp_path).claim()
    (tmp_path / "stretto_flow_10_forged").write_bytes(b"no table")
    (tmp_path / f"stretto_flow_10_{'0' * 32}").mkdir()
    (tmp_path / f"stretto_flow_10_{'1' * 32}").write_bytes(b"no table")
    assert num_active_utterances(10, tmp_path) == 1
