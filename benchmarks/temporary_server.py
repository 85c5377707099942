"""A server on free ports for as long as a `with` lasts, started as `stretto serve` does."""

import argparse
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.results_file import ROOT
from stretto.serving import pid_file

START_S, STOP_S = 300.0, 60.0
PORTS = range(10_000, 23_000)  # below Linux's ip_local_port_range, which begins at 32768
TAIL = 3000  # characters of the server's log in the error of a start that failed


def free_ports(count: int) -> list[int]:
    """`count` ports on which nobody listens now.

    None that the kernel gives to whoever asks for any: a server takes its ports only when its models are loaded, and by
    then one of the many connections of an engine could have got it.
    """
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
    return found


@contextmanager
def serving(repository: Path, python: str | Path = sys.executable) -> Iterator[str]:
    """The gRPC address of a server that is ready; RuntimeError with the end of its log where it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        record, log = Path(folder) / "serve.json", Path(folder) / "log"
        http, grpc, metrics = free_ports(3)
        command: list[object] = [python, "-m", "stretto", "serve", "--model-repository", repository]
        command += [
            "--pid-file",
            record,
            "--log-file",
            log,
            "--http-port",
            http,
            "--grpc-port",
            grpc,
            "--metrics-port",
            metrics,
        ]
        launcher = subprocess.Popen([str(word) for word in command])
        try:
            _await(launcher, record, log)
            yield f"localhost:{grpc}"
        finally:
            launcher.terminate()
            launcher.wait(STOP_S)


def _await(launcher: subprocess.Popen[bytes], record: Path, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while (pid_file.read(record) or {}).get("state") != "ready":
        if launcher.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-TAIL:] if log.exists() else ""
            raise RuntimeError(f"the server of {record} did not become ready:\n{said}")
        time.sleep(0.2)


def command_line(description: str | None, benchmark: str) -> argparse.ArgumentParser:
    """The flags of a benchmark that starts a server, and of itself only those that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/{benchmark}.jsonl"))
    return parser


def stop_on_sigterm() -> None:
    """Have SIGTERM end this process as an exit does, so that its server is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
