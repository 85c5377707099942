"""Result lines, command lines, and the free ports of temporary servers."""

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from subprocess import PIPE

from benchmarks.harness import PORTS, ROOT, append_result, free_ports


def test_benchmark_results_record_their_provenance(tmp_path, capsys):
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


def test_free_ports_are_distinct_and_not_ephemeral() -> None:
    ports = free_ports(40)
    assert len(set(ports)) == 40
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(socket.socket()).bind(("", port))
    with socket.socket() as client:
        client.bind(("", 0))
        assert client.getsockname()[1] not in PORTS


def test_free_ports_are_unique_across_processes_with_equal_seeds() -> None:
    ports = [free_ports(20)]
    ask = "import random; random.seed(0); from benchmarks.harness import free_ports; print(*free_ports(20))"
    ask += "; input()"
    with ExitStack() as stack:
        for _ in range(2):
            command = [sys.executable, "-c", ask]
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True))
            assert process.stdout is not None
            ports.append([int(port) for port in process.stdout.readline().split()])
    assert len({port for each in ports for port in each}) == 60
