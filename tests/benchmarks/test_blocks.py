"""The benchmark of block codecs: costs, and the deviation of blocks from one decode."""

import json
import sys

import pytest

from benchmarks import codecs

pytestmark = pytest.mark.slow


def test_blocks_overlap_and_one_is_one_decode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["codecs", "--blocks", "2", "--lengths", "20", "30"])
    codecs.main()
    output = capsys.readouterr().out
    record = json.loads(output.splitlines()[-1])
    assert "| 75 | 50 | " in output
    (*first, _, few), (*second, _, more) = record["costs"]
    assert (first[:2], second[:2]) == ([25, 25], [75, 50])
    assert 0 < few < more
    (_, *alike), (_, *apart) = record["differences"]
    assert alike == [0.0, 0.0]
    assert min(apart) > 0.01
