"""The job with an engine and a decoder in two processes: orders of starting, errors, and NVIDIA's MPS, with fakes."""

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import side_by_side
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.side_by_side import Server, run
from stretto.launcher.mps import PIPES, PROGRAM
from stretto.triton_io.stub import MPS_PRIORITY

pytestmark = pytest.mark.slow
# `-d` starts the daemon and "quit" on standard input ends it.
DAEMON = '#!/bin/sh\nif [ "$1" = -d ]; then echo start; else cat; fi >> {log}\n'


class Fake:
    """Part of a server that records its start and reports which parts are running."""

    kind = ""

    def __init__(self, server: Server) -> None:
        self._starts = server.checkpoint / "starts"
        with self._starts.open("a") as file:
            file.write(f"{self.kind} {os.getpid()}\n")
        mps = {"pipes": os.environ.get(PIPES), "priority": os.environ.get(MPS_PRIORITY)}
        self.figures: dict[str, Any] = {"beside": self._others(), **mps}

    def _others(self) -> list[str]:
        """Return the kinds of the other processes that run."""
        started = [line.split() for line in self._starts.read_text().splitlines()]
        return [kind for kind, pid in started if int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()]


class FakeEngine(Fake):
    kind = "engine"

    def step(self) -> dict[str, Any]:
        return {"step_ms": 1.0}


class FakeDecoder(Fake):
    kind = "decoder"

    def begin(self) -> dict[str, Any]:
        return {}

    def end(self) -> dict[str, Any]:
        return {"streams_real_time": 2.0}


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Return the setup of a dry run in which all parts are fakes and no MPS is installed."""
    server = Server(Setup("cpu", tmp_path), tmp_path, tmp_path / "engine.json", None)
    monkeypatch.setattr(side_by_side, "write_server", Written(server))
    monkeypatch.setattr(side_by_side, "Engine", FakeEngine)
    monkeypatch.setattr(side_by_side, "Decoder", FakeDecoder)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(PIPES, raising=False)
    return server.setup


class Written:
    """Function that returns a server; unlike a nested function, it can be sent to a process."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __call__(self, folder: Path, setup: Setup) -> Server:
        return self._server


def test_engine_and_decoder_start_in_both_orders(setup: Setup) -> None:
    *lines, left_out = run(setup)
    found = [(line["order"], line.get("process"), line.get("beside"), line.get("decoder")) for line in lines]
    assert found == [
        ("engine, decoder", "fakeengine", [], None),
        ("engine, decoder", "fakedecoder", ["engine"], None),
        ("engine, decoder", None, None, "idle"),
        ("engine, decoder", None, None, "busy"),
        ("decoder, engine", "fakeengine", ["decoder"], None),
    ]
    assert [line["step_ms"] for line in lines[2:4]] == [1.0, 1.0]
    assert lines[3]["streams_real_time"] == 2.0
    assert not any(line["mps"] for line in lines)
    assert (left_out["order"], left_out["mps"]) == ("together", True)
    assert f"expected the program {PROGRAM}" in left_out["left_out"]


@pytest.mark.parametrize(("ends", "error"), [(False, "ValueError: no free memory"), (True, "the process has ended")])
def test_failed_engine_is_a_line_and_the_job_goes_on(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, ends: bool, error: str
) -> None:
    class Failing(FakeEngine):
        def __init__(self, server: Server) -> None:
            if ends:
                os._exit(1)
            raise ValueError("no free memory")

    monkeypatch.setattr(side_by_side, "Engine", Failing)
    first, decoder, second, _ = run(setup)
    assert error in first["error"]
    assert (first["ok"], second["ok"]) == (False, False)
    assert (decoder["process"], decoder["beside"]) == ("fakedecoder", [])


def test_mps_daemon_serves_both_processes_and_ends(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    program, log = setup.out / PROGRAM, setup.out / "daemon"
    program.write_text(DAEMON.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{setup.out}:/usr/bin:/bin")
    lines = [line for line in run(setup) if line["mps"]]
    assert [line["decoder_priority"] for line in lines] == [0] * 4 + [1] * 4
    assert [line["priority"] for line in lines if "priority" in line] == [None, "0", None, "1"]
    engine, decoder, *steps = lines[:4]
    assert {engine["process"], decoder["process"]} == {"fakeengine", "fakedecoder"}
    assert engine["pipes"] == decoder["pipes"]
    assert engine["pipes"].endswith("/mps")
    assert [line["decoder"] for line in steps] == ["idle", "busy"]
    assert log.read_text().split() == ["start", "quit"]
