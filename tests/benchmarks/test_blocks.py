"""The benchmark of block codecs reports costs, and how far blocks deviate from a one-shot decode."""

import json
import sys

import pytest

from benchmarks import codecs

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize(("codec", "size"), [("glm4_voice", 25), ("s3gen", 28), ("s3gen_meanflow", 28)])
def test_block_benchmark_reports_costs_and_differences(
    codec: str, size: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["codecs", codec, "--blocks", "2", "--lengths", "20", "30"])
    codecs.main()
    output = capsys.readouterr().out
    record = json.loads(output.splitlines()[-1])
    assert f"| {size + 50} | 50 | " in output
    (*first, _, few), (*second, _, more) = record["costs"]
    assert (first[:2], second[:2]) == ([size, size], [size + 50, 50])
    assert few > 0
    assert more > (few if codec == "glm4_voice" else 0)  # S3Gen decodes its voice with each block
    (_, *alike), (_, *apart) = record["differences"]
    assert alike == [0.0, 0.0]
    assert min(apart) > 0.01
