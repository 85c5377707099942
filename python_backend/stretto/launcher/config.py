"""Launcher configuration and its command-line flags."""

import argparse
import math
import os
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stretto import entry_points
from stretto.errors import CommandParser, argument_path
from stretto.launcher.installation import LaunchError, bundled_repository, cache_folder, state_folder
from stretto.launcher.options import ServedModel, configuration_digest, served_model
from stretto.launcher.shares import ALL, Share, number_of_replicas, shares_of
from stretto.proxy.apis import CLOSED, HTTP
from stretto.proxy.messages import Ports
from stretto.triton_io.stub import PRONUNCIATIONS
from stretto_contract.lexicon_files import read_lexicon_file, write_json
from stretto_contract.listening import LOOPBACK, listening_address
from stretto_contract.pronunciation import InvalidEntry

DESCRIPTION = (
    "Start the Triton server, keep it alive, and drain it on SIGTERM. --model NAME serves an installed model. "
    " Unknown flags go to tritonserver."
)
TAKEN = {"--http-address", "--grpc-address", "--metrics-address", "--allow-http", "--allow-grpc"}
TAKEN |= {"--http-restricted-api", "--grpc-restricted-protocol"}
# Flags of tritonserver whose value is a path.
PATH_FLAGS = {"--model-store", "--backend-directory", "--repoagent-directory", "--cache-directory", "--trace-file"}
PATH_FLAGS |= {"--grpc-server-cert", "--grpc-server-key", "--grpc-root-cert"}
ROUTES = "stretto_gateway.routes"  # entry points of the gateway's routes
GATEWAY_PATH_FLAGS = {
    *("--keys", "--admin-keys", "--voices", "--jobs", "--turn-model", "--certificate", "--private-key"),
    *("--signing-key", "--signing-certificate"),
}
TRACE_FILE = re.compile(r"((?:--trace-config=)?triton,file)=(.*)", re.DOTALL)
PORT_STEP = 10  # between the ports of two replicas
MAX_MESSAGE_MB = 2147  # gRPC message sizes are 31-bit


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """Launcher configuration. A port of 0 is replaced by a free port once the proxy listens (`listening_at`).

    Attributes:
        allowed: APIs in `CLOSED` that the user has opened to all clients.
        gateway_port: Gateway port; None to run no gateway.
        log_file: Path of the log; None for standard output.
        start_seconds: Time limit of a start, scaled by the machine's load.
        start_attempts: Maximum number of aborted starts before the server has been ready for the first time.
        drain_seconds: Time limit for streams in progress when stopping.
        marker: Marker of generated speech; empty for the one that the model repository names.
        pronunciations: File of the pronunciation dictionary for all requests.
        shares: Share of the machine of each replica, this launcher's first; empty for a single server.
        idle_s: Time without a request after which the server sleeps; 0 for never.
    """

    model_repository: Path
    model: ServedModel
    address: str
    allowed: frozenset[str]
    max_request_bytes: int
    http_port: int
    grpc_port: int
    metrics_port: int
    gateway_port: int | None
    pid_file: Path
    log_file: Path | None
    cache: Path
    start_seconds: float
    start_attempts: int
    drain_seconds: float
    passed: tuple[str, ...]
    gateway_args: tuple[str, ...] = ()
    marker: str = ""
    pronunciations: Path | None = None
    shares: tuple[Share, ...] = ()
    idle_s: float = 0.0

    @property
    def ports(self) -> dict[str, int]:
        """Port of each protocol by name."""
        ports = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        return ports if self.gateway_port is None else ports | {"gateway": self.gateway_port}

    @property
    def gateway_address(self) -> str:
        """Address at which the gateway listens: `--address` in its own arguments, or the launcher's address."""
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("--address", type=listening_address, default=self.address)
        address: str = parser.parse_known_args(self.gateway_args)[0].address
        return address

    @property
    def stop_seconds(self) -> float:
        """Maximum duration of a stop, including draining and process exits."""
        return (1 if self.gateway_port is None else 2) * self.drain_seconds + 30

    def listening_at(self, ports: Ports) -> "LaunchConfig":
        http_port = self.http_port if ports.http is None else ports.http
        return replace(self, http_port=http_port, grpc_port=ports.grpc, metrics_port=ports.metrics)

    @property
    def triton_ports(self) -> dict[str, int]:
        """Ports on which Triton itself listens; the proxy listens on all others."""
        return {"http": self.http_port} if HTTP in self.allowed else {}


def default_port() -> int:
    """Return the default HTTP port: STRETTO_PORT, or 8000 as in Triton. gRPC and metrics use the next two."""
    text = os.environ.get("STRETTO_PORT") or "8000"
    if not text.isdecimal() or not 0 < int(text) <= 65_532:
        raise LaunchError(f"STRETTO_PORT: expected a port from 1 to 65532, got {text!r}")
    return int(text)


def default_pid_file(http_port: int, folder: Path) -> Path:
    """Return the path of the default pid file for this HTTP port."""
    return folder / f"server-{http_port}.pid"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the launcher's flags; raise LaunchError if STRETTO_PORT is not a valid port."""
    flags = CommandParser(prog="stretto serve", description=DESCRIPTION, allow_abbrev=False)
    port = default_port()
    state = described_state_folder()
    flags.add_argument(
        "--model-repository", type=argument_path, default=bundled_repository(), help="default: %(default)s"
    )
    flags.add_argument(
        "--address", type=listening_address, default=LOOPBACK, help="0.0.0.0 or :: opens the ports to all hosts"
    )
    flags.add_argument(
        "--allow", action="append", default=[], choices=CLOSED, help="open an API to all clients; repeatable"
    )
    flags.add_argument(
        "--max-request-mb",
        type=partial(whole_number, last=MAX_MESSAGE_MB, expected=f"MB from 1 to {MAX_MESSAGE_MB}"),
        default=64,
        help="maximum request size; default: %(default)s",
    )
    for number, name in enumerate(("http", "grpc", "metrics")):
        default = f"STRETTO_PORT + {number}" if number else "STRETTO_PORT"
        about = f"default: {default}, or {8000 + number}; 0: any free port, written to the pid file"
        flags.add_argument(f"--{name}-port", type=port_or_any, default=port + number, help=about)
    flags.add_argument("--gateway", action="store_true", help="also serve OpenAI's audio API over HTTP")
    flags.add_argument("--gateway-port", type=port_number, default=port + 3, help="default: STRETTO_PORT + 3, or 8003")
    about = "argument for stretto gateway, for example --gateway-arg=--strict; repeatable"
    flags.add_argument("--gateway-arg", action="append", default=[], metavar="ARG", help=about)
    about = f"servers behind the gateway, each with a GPU, or a part of the cores, of its own; {ALL}: one for each GPU"
    flags.add_argument("--replicas", type=number_of_replicas, default=1, metavar="N", help=about)
    about = "mark generated speech with this marker, such as perth; default: the model repository's, usually none"
    flags.add_argument("--marker", type=marker_name, metavar="NAME", help=about)
    about = f"pronunciation dictionary of all requests, in JSON or PLS; default: {PRONUNCIATIONS}, usually none"
    flags.add_argument(
        "--pronunciations",
        type=argument_path,
        metavar="FILE",
        default=os.environ.get(PRONUNCIATIONS) or None,
        help=about,
    )
    flags.add_argument(
        "--pid-file",
        type=argument_path,
        help=f"JSON file with pid, ports and state while the launcher runs (default: in {state}, named by HTTP port)",
    )
    about = "the server's output, at most 16 MiB and four older files of that size; '-' is standard output"
    flags.add_argument("--log-file", type=argument_path, help=f"{about} (default: in {state})")
    flags.add_argument("--cache", type=argument_path, help="folder for private files of the launcher")
    add_time_limits(flags)
    action = flags.add_mutually_exclusive_group()
    action.add_argument("--status", action="store_true", help="print the launcher's state; exit code 0 if it is ready")
    action.add_argument("--stop", action="store_true", help="drain and stop the launcher")
    return flags


def add_time_limits(flags: argparse.ArgumentParser) -> None:
    """Add the flags for time limits and the number of start attempts."""
    default = "; default: %(default)s"
    about = f"time limit of a start{default}"
    flags.add_argument("--start-seconds", type=partial(seconds, may_be_zero=False), default=600, help=about)
    about = f"number of start attempts if the server aborts{default}"
    flags.add_argument(
        "--start-attempts",
        type=partial(whole_number, last=math.inf, expected="a whole number from 1"),
        default=10,
        help=about,
    )
    about = f"maximum wait for active streams on SIGTERM; a gateway gets as much time before that{default}"
    flags.add_argument("--drain-seconds", type=partial(seconds, may_be_zero=True), default=30, help=about)
    about = "stop Triton after this time without a request, and start it again for the next one; default: never"
    flags.add_argument("--idle-s", type=partial(seconds, may_be_zero=False), default=0.0, metavar="SECONDS", help=about)


def marker_name(text: str) -> str:
    """Parse the name of an installed marker, for argparse."""
    if entry_points.find(entry_points.MARKERS, text) is None:
        raise argparse.ArgumentTypeError(f"expected one of {entry_points.names(entry_points.MARKERS)}, got {text!r}")
    return text


def port_number(text: str) -> int:
    """Parse a port from 1 to 65535."""
    return whole_number(text, 65_535, "a port from 1 to 65535")


def port_or_any(text: str) -> int:
    """Parse a port from 0 to 65535; 0 means any free port."""
    return 0 if text == "0" else port_number(text)


def whole_number(text: str, last: float, expected: str) -> int:
    """Parse a whole number from 1 to `last`."""
    if not text.isdecimal() or not 0 < int(text) <= last:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return int(text)


def seconds(text: str, may_be_zero: bool) -> float:
    """Parse a finite time in seconds of at least 0, or greater than 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf or (may_be_zero and value == 0)):
        expected = "at least 0 seconds" if may_be_zero else "more than 0 seconds"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value


def launch_config(flags: argparse.Namespace, passed: list[str]) -> LaunchConfig:
    """Return the configuration from parsed flags; raise LaunchError if they contradict each other.

    The result also depends on the options of the model repository. A flag in `passed` that only the launcher may set is
    an error.
    """
    taken = {word.partition("=")[0] for word in passed} & TAKEN
    if taken:
        raise LaunchError(f"{min(taken)}: set the listening address with --address and the open APIs with --allow")
    of_routes, passed = split_route_flags(passed)
    gateway_args = [*of_routes, *flags.gateway_arg]
    if gateway_args and not flags.gateway:
        name = of_routes[0].partition("=")[0] if of_routes else "--gateway-arg"
        raise LaunchError(f"{name}: requires --gateway")
    if not flags.http_port and HTTP in flags.allow:
        raise LaunchError(
            "--http-port: expected a fixed port, because with --allow http Triton itself listens there, got 0"
        )
    shares = replica_shares(flags)
    if flags.idle_s and HTTP in flags.allow:
        raise LaunchError("--idle-s: expected no --allow http, because requests to Triton itself would not wake it")
    pid_file = pid_file_of(flags)
    log_file = flags.log_file or own_log(flags.http_port, pid_file)
    words = [dictionary_text(flags.pronunciations)] if flags.pronunciations else []
    configuration = configuration_digest(flags.model_repository, (flags.marker or "", *words, *passed))
    return LaunchConfig(
        model_repository=flags.model_repository.resolve(),
        model=replace(served_model(flags.model_repository), configuration=configuration),
        address=flags.address,
        allowed=frozenset(flags.allow),
        max_request_bytes=flags.max_request_mb * 1_000_000,
        http_port=flags.http_port,
        grpc_port=flags.grpc_port,
        metrics_port=flags.metrics_port,
        gateway_port=flags.gateway_port if flags.gateway else None,
        pid_file=pid_file,
        log_file=None if log_file == Path("-") else log_file,
        cache=flags.cache.absolute() if flags.cache else cache_folder(),
        start_seconds=flags.start_seconds,
        start_attempts=flags.start_attempts,
        drain_seconds=flags.drain_seconds,
        passed=tuple(with_absolute_paths(passed, PATH_FLAGS)),
        gateway_args=tuple(with_absolute_paths(gateway_args, GATEWAY_PATH_FLAGS)),
        marker=flags.marker or "",
        pronunciations=flags.pronunciations.resolve() if flags.pronunciations else None,
        shares=shares,
        idle_s=flags.idle_s,
    )


def replica_shares(flags: argparse.Namespace) -> tuple[Share, ...]:
    """Return the share of each replica, empty for a single one; raise LaunchError if replicas are not possible."""
    if flags.replicas == 1:
        return ()
    if not flags.gateway:
        raise LaunchError("--replicas: requires --gateway, which spreads the requests")
    if flags.idle_s:
        raise LaunchError("--idle-s: expected no --replicas, because the gateway would wake the replicas in turn")
    shares = tuple(shares_of(flags.replicas))
    ports = (flags.http_port, flags.grpc_port, flags.metrics_port)
    last = max(ports) + (len(shares) - 1) * PORT_STEP
    if not all(ports) or last > 65_535:
        expected = f"fixed ports, which those of the other replicas follow in steps of {PORT_STEP}, up to 65535"
        raise LaunchError(f"--replicas: expected {expected}, got {last if all(ports) else 0}")
    return shares if len(shares) > 1 else ()


def split_route_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags for the gateway with their values, and all other words.

    A flag is for the gateway if it is named after an installed route: `--NAME` or `--NAME-…`.
    """
    routes = [route.name for route in entry_points.installed(ROUTES)] if words else []
    of_routes = list[str]()
    others = list[str]()
    current = others
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("-"):
            is_route = any(f"{flag}-".startswith(f"--{name}-") for name in routes)
            current = of_routes if is_route else others
        current.append(word)
    return of_routes, others


def with_absolute_paths(arguments: Iterable[str], path_flags: Container[str]) -> list[str]:
    """Make the paths in a process's arguments absolute, because its current folder is not the user's."""
    words = list[str]()
    for word in arguments:
        flag, equals, path = word.partition("=")
        trace = TRACE_FILE.fullmatch(word)
        if trace is not None:
            words.append(f"{trace[1]}={absolute(trace[2])}")
        elif flag in path_flags and equals:
            words.append(f"{flag}={absolute(path)}")
        elif words and words[-1] in path_flags:
            words.append(absolute(word))
        else:
            words.append(word)
    return words


def absolute(path: str) -> str:
    """Return the absolute form of a path; an empty path and an address such as `s3://bucket` are unchanged."""
    return path if not path or "://" in path else os.path.abspath(os.path.expanduser(path))


def dictionary_text(path: Path) -> str:
    """Return the pronunciation dictionary in a file as JSON; raise LaunchError if it is invalid."""
    try:
        return write_json(read_lexicon_file(path))
    except (OSError, InvalidEntry) as error:
        raise LaunchError(f"--pronunciations: {path}: {error}") from None


def own_log(http_port: int, pid_file: Path) -> Path:
    """Return the default path of the log, named after the HTTP port or, if that is 0, the pid file."""
    return state_folder() / f"server-{http_port}.log" if http_port else pid_file.with_suffix(".log")


def described_state_folder() -> str:
    """Return the state folder for help texts of argparse, also for a user without one."""
    try:
        return str(state_folder()).replace("%", "%%")
    except LaunchError:
        return "~/.local/state/stretto"


def pid_file_of(flags: argparse.Namespace) -> Path:
    """Return the path of the pid file: the given one, or the default for the HTTP port."""
    if not flags.http_port and flags.pid_file is None:
        raise LaunchError("--http-port 0: requires --pid-file, the file to which the port is written")
    return flags.pid_file or default_pid_file(flags.http_port, state_folder())
