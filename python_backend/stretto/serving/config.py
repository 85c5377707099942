"""What the launcher was asked to do."""

import argparse
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from stretto.serving.environment import ROOT
from stretto.serving.installation import LaunchError
from stretto.serving.proxy.access import CLOSED, HTTP

DESCRIPTION = "Start the Triton server, keep it alive, and drain it on SIGTERM. Unknown flags go to tritonserver."
TAKEN = {"--http-address", "--grpc-address", "--metrics-address", "--allow-http", "--allow-grpc"}
TAKEN |= {"--http-restricted-api", "--grpc-restricted-protocol"}


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """The launcher's own flags, and in `passed` those of tritonserver. An empty `log_file` is standard output."""

    model_repository: Path
    address: str
    allowed: frozenset[str]
    max_request_bytes: int
    http_port: int
    grpc_port: int
    metrics_port: int
    pid_file: Path | None
    log_file: Path | None
    cache: Path
    start_seconds: float
    start_attempts: int
    drain_seconds: float
    passed: tuple[str, ...]

    @property
    def ports(self) -> dict[str, int]:
        """The ports by protocol."""
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}

    @property
    def triton_ports(self) -> dict[str, int]:
        """Those that Triton itself listens on; the others are the proxy's."""
        return {"http": self.http_port} if HTTP in self.allowed else {}


def default_cache() -> Path:
    """The user's cache folder for this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stretto"


def parser() -> argparse.ArgumentParser:
    """The launcher's flags; ports default to Triton's own."""
    flags = argparse.ArgumentParser(prog="stretto serve", description=DESCRIPTION, allow_abbrev=False)
    flags.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    flags.add_argument("--address", type=ip_address, default="127.0.0.1", help="0.0.0.0 opens the ports to all hosts")
    flags.add_argument("--allow", action="append", default=[], choices=CLOSED, help="open an API to all; repeatable")
    flags.add_argument("--max-request-mb", type=int, default=64, help="largest request, in MB")
    flags.add_argument("--http-port", type=int, default=8000)
    flags.add_argument("--grpc-port", type=int, default=8001)
    flags.add_argument("--metrics-port", type=int, default=8002)
    flags.add_argument("--pid-file", type=Path, help="JSON with pid, ports and state, as long as the launcher lives")
    flags.add_argument("--log-file", help="the server's output; '-' is standard output (default: in the cache folder)")
    flags.add_argument("--cache", type=Path, default=default_cache(), help="private files of the launcher")
    flags.add_argument("--start-seconds", type=float, default=600, help="give up a start after this long")
    flags.add_argument("--start-attempts", type=int, default=4, help="starts tried when the server aborts")
    flags.add_argument("--drain-seconds", type=float, default=30, help="longest wait for running streams on SIGTERM")
    action = flags.add_mutually_exclusive_group()
    action.add_argument("--status", action="store_true", help="print the state in --pid-file; 0 when ready")
    action.add_argument("--stop", action="store_true", help="drain and stop the launcher of --pid-file")
    return flags


def ip_address(text: str) -> str:
    """`text` as an address to listen at; argparse reports what is none."""
    return str(ipaddress.ip_address(text))


def launch_config(flags: argparse.Namespace, passed: list[str]) -> LaunchConfig:
    """The parsed flags as a config; LaunchError for flags of tritonserver that are the launcher's to give."""
    given = {word.partition("=")[0] for word in passed} & TAKEN
    if given:
        raise LaunchError(f"{min(given)}: say with --address where the server listens, and with --allow what is open")
    log_file = None if flags.log_file == "-" else Path(flags.log_file or flags.cache / f"server-{flags.http_port}.log")
    return LaunchConfig(
        model_repository=flags.model_repository.resolve(),
        address=flags.address,
        allowed=frozenset(flags.allow),
        max_request_bytes=flags.max_request_mb * 1_000_000,
        http_port=flags.http_port,
        grpc_port=flags.grpc_port,
        metrics_port=flags.metrics_port,
        pid_file=flags.pid_file,
        log_file=log_file,
        cache=flags.cache,
        start_seconds=flags.start_seconds,
        start_attempts=flags.start_attempts,
        drain_seconds=flags.drain_seconds,
        passed=tuple(passed),
    )
