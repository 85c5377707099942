"""Replicas: further launchers of the same model, each with GPUs or cores of its own, behind one gateway."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from stretto.launcher.background import STARTER
from stretto.launcher.config import PORT_STEP, LaunchConfig, default_pid_file, own_log
from stretto.launcher.installation import state_folder
from stretto.launcher.launch_log import log_line
from stretto.machine.worker_process import die_with_parent

RESTART_S = 5.0  # minimum time between two starts of a replica
KILL_S = 35.0  # maximum time from a launcher's drain to its end


def replica_config(config: LaunchConfig, number: int) -> LaunchConfig:
    """Return the configuration of replica `number`: the first one's, but with other ports and without a gateway."""
    http_port = config.http_port + number * PORT_STEP
    pid_file = default_pid_file(http_port, state_folder())
    return replace(
        config,
        http_port=http_port,
        grpc_port=config.grpc_port + number * PORT_STEP,
        metrics_port=config.metrics_port + number * PORT_STEP,
        gateway_port=None,
        gateway_args=(),
        pid_file=pid_file,
        log_file=None if config.log_file is None else own_log(http_port, pid_file),
        shares=(),
    )


def words_of(config: LaunchConfig) -> list[str]:
    """Return the arguments of `stretto serve` for a configuration without a gateway."""
    flags: list[tuple[str, Any]] = [
        ("--model-repository", config.model_repository),
        ("--address", config.address),
        ("--max-request-mb", config.max_request_bytes // 1_000_000),
        ("--http-port", config.http_port),
        ("--grpc-port", config.grpc_port),
        ("--metrics-port", config.metrics_port),
        ("--pid-file", config.pid_file),
        ("--log-file", config.log_file or "-"),
        ("--cache", config.cache),
        ("--start-seconds", config.start_seconds),
        ("--start-attempts", config.start_attempts),
        ("--drain-seconds", config.drain_seconds),
        *(("--allow", name) for name in sorted(config.allowed)),
    ]
    flags += [("--marker", config.marker)] if config.marker else []
    flags += [("--pronunciations", config.pronunciations)] if config.pronunciations else []
    return [*(str(word) for flag in flags for word in flag), *config.passed]


class Replicas:
    """The launchers of all replicas but the first one, which is this launcher's own server.

    Args:
        config: Configuration of the first one, with the shares of all.
    """

    def __init__(self, config: LaunchConfig) -> None:
        self._shares = config.shares[1:]
        self._configs = [replica_config(config, number) for number in range(1, len(config.shares))]
        self._started = [0.0] * len(self._shares)
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * len(self._shares)
        for number in range(len(self._shares)):
            self._start(number)

    def _start(self, number: int) -> None:
        config = self._configs[number]
        environment = {name: value for name, value in os.environ.items() if name != STARTER}
        self._started[number] = time.monotonic()
        log_line(f"starting replica {number + 2} on gRPC port {config.grpc_port}; its log: {config.log_file or '-'}")
        self._processes[number] = subprocess.Popen(
            [sys.executable, "-P", "-m", "stretto", "serve", *words_of(config)],
            env=environment | self._shares[number].environment(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must reach only the first launcher, which stops the others
            preexec_fn=partial(_begin, self._shares[number].cores),
        )

    def keep_alive(self) -> None:
        """Restart launchers that have ended."""
        for number, process in enumerate(self._processes):
            has_ended = process is None or process.poll() is not None
            if has_ended and time.monotonic() - self._started[number] > RESTART_S:
                # process creation failed, or the cores are no longer there; the next call retries
                with suppress(OSError, subprocess.SubprocessError):
                    self._start(number)

    def drain(self) -> None:
        """Let the launchers complete their requests and end, without waiting for them."""
        for process in self._processes:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Stop the launchers, and wait until they have ended."""
        self.drain()
        for process, config in zip(self._processes, self._configs, strict=True):
            if process is None:
                continue
            try:
                process.wait(config.drain_seconds + KILL_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its proxy cleans up
                process.wait()


def _begin(cores: frozenset[int]) -> None:
    die_with_parent()
    os.sched_setaffinity(0, cores)
