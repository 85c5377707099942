import json
import subprocess
from pathlib import Path

from benchmarks import temporary_server
from benchmarks.results_file import append_result, command_line


def test_each_result_is_a_line_that_says_where_it_comes_from(tmp_path, capsys):
    path = tmp_path / "new" / "results.jsonl"
    for figure in (1.5, 2.5):
        append_result(path, "example", {"ms_per_step": figure})
    lines = path.read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    records = [json.loads(line) for line in lines]
    assert [record["ms_per_step"] for record in records] == [1.5, 2.5]
    assert records[0]["benchmark"] == "example"
    assert records[0]["hardware"]["cores"] >= 1
    assert records[0]["versions"]["torch"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(records[0]["revision"].removesuffix("-dirty"))


def test_without_a_file_the_line_is_only_printed(tmp_path, capsys):
    append_result(None, "example", {})
    assert json.loads(capsys.readouterr().out)["benchmark"] == "example"


def test_a_benchmark_writes_to_a_file_of_its_name_and_its_help_is_its_whole_text():
    for flags in (command_line, temporary_server.command_line):
        parser = flags("What a step costs.\n\n    python -m benchmarks.steps\n", "steps")
        assert parser.parse_args([]).out == Path("benchmarks/results/steps.jsonl")
        assert parser.parse_args(["--out", "mine"]).out == Path("mine")
        assert "What a step costs.\n\n    python -m benchmarks.steps\n" in parser.format_help()
