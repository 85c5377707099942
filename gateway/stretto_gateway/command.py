"""Command `stretto gateway`: offer OpenAI's audio API over HTTP in front of a running server.

API keys are read from --keys FILE, one per line, and from STRETTO_API_KEYS, separated by commas. Voices that callers
add are stored in the folder --voices FOLDER or STRETTO_VOICES. A voice is available only with the key that added it.
"""

import argparse
import asyncio
import logging
import math
import os
import re
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from stretto_client.arguments import Parser
from stretto_client.console import argument_path
from stretto_client.recognisers import Address
from stretto_contract.heartbeat import beat, keep_listener, kept_listener
from stretto_contract.listening import ALL_OF, LOOPBACK, listen, listening_address, place
from stretto_gateway.app import is_ready, make_app
from stretto_gateway.audio_hosts import AudioHosts
from stretto_gateway.config import CACHE_AGE_S, MIB, CacheSettings, GatewayConfig, Limits
from stretto_gateway.connection import Connection
from stretto_gateway.connection import settings as socket_settings
from stretto_gateway.encoding import SYNTHETIC
from stretto_gateway.guard import origin_of
from stretto_gateway.metrics import spans_are_wanted
from stretto_gateway.routes import installed_routes
from stretto_gateway.usage import Ceiling

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from stretto_client.manifest import FileSigner

KEYS = "STRETTO_API_KEYS"
ADMIN_KEYS = "STRETTO_ADMIN_KEYS"
VOICES = "STRETTO_VOICES"
STRICT = "STRETTO_STRICT"
ORIGINS = "STRETTO_CORS_ORIGINS"
HOSTS = "STRETTO_AUDIO_HOSTS"
MIN_KEY_CHARS = 16
# Open files: a connection and its upload, or a connection that has been accepted before another one is closed.
FILES_PER_CONNECTION = 2
OTHER_FILES = 64
MIN_CONNECTIONS = 8
MAX_ALIAS_CHARS = 200
MAX_TAG_CHARS = 500
UNITS = {"MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30}


class GatewayServer(uvicorn.Server):
    """uvicorn server that notifies the launcher once it listens, and the gateway on shutdown."""

    def __init__(self, app: FastAPI, config: uvicorn.Config, message: str):
        super().__init__(config)
        self._app = app
        self.message = message

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.message, file=sys.stderr, flush=True)
            self._beating = asyncio.create_task(beat(partial(is_ready, self._app)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.gateway.sessions.draining.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal and stop on the second. Unlike in uvicorn, the signal is not re-raised."""
        self._app.state.is_draining = True
        self.force_exit = self.should_exit
        self.should_exit = True


def main(words: list[str] | None = None) -> int:
    """Serve until a signal arrives; return 0, or 1 if listening or importing a route fails, 2 for invalid arguments."""
    try:
        parser = arguments()
    except ValueError as error:  # an error of an installed route
        print(f"stretto gateway: {error}", file=sys.stderr)
        return 1
    args = parser.parse_args(words)
    try:
        config = read_config(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        listener = kept_listener() or listen(config.address, config.port, backlog=1024)
    except OSError as error:
        print(f"stretto gateway: {error.strerror}", file=sys.stderr)
        return 1
    keep_listener(listener)
    config = with_fewer_connections(config)
    server = make_server(config, listener, args.certificate, args.private_key)
    try:
        server.config.load()
    except OSError as error:  # OpenSSL's errors do not mention the file
        listener.close()
        key = "" if args.private_key is None else f", --private-key {args.private_key}"
        parser.error(f"--certificate {args.certificate}{key}: {error}")
    # uvloop halves the time to the first byte
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve([listener]))
    return 0


def with_fewer_connections(config: GatewayConfig) -> GatewayConfig:
    """Return the settings. If the limit on open files is too low, permit fewer connections and print a message."""
    wanted = config.limits.max_connections
    others = OTHER_FILES + config.limits.max_sessions * sum(options.files_per_session for options in config.routes)
    needed = FILES_PER_CONNECTION * wanted + others
    num_files = raise_file_limit(needed)
    fits = max(MIN_CONNECTIONS, (num_files - others) // FILES_PER_CONNECTION)
    if fits >= wanted:
        return config
    print(
        f"[gateway] at most {fits} connections instead of {wanted}, because the hard limit on open files is {num_files}"
        f" (ulimit -Hn); expected at least {needed}",
        file=sys.stderr,
        flush=True,
    )
    return replace(config, limits=replace(config.limits, max_connections=fits))


def raise_file_limit(num_files: int) -> int:
    """Raise the limit on open files to `num_files`, or as far as permitted; return the smaller of the two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def make_server(
    config: GatewayConfig, listener: socket.socket, certificate: Path | None = None, private_key: Path | None = None
) -> GatewayServer:
    """Create a server that serves until a signal arrives, and then completes running responses.

    Without a certificate, it uses plain HTTP. The certificate's file may also contain the private key.
    """
    app = make_app(config)
    settings = uvicorn.Config(
        app,
        http=Connection,
        **socket_settings(config.limits.max_event_bytes),
        log_level="critical",  # the gateway has its own log; uvicorn's contains addresses and complete paths
        access_log=False,
        server_header=False,
        proxy_headers=False,  # callers could use them to forge their address
        limit_concurrency=config.limits.max_connections,
        backlog=config.limits.max_connections,
        timeout_keep_alive=config.limits.keep_alive_s,
        timeout_graceful_shutdown=round(config.limits.drain_s),
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    where = f"http{'s' if certificate else ''}://{place(config.address, listener.getsockname()[1])}"
    if config.address in ALL_OF:
        where += f" ({ALL_OF[config.address]})"
    who = "" if config.keys else "; it has no keys, so everyone who can reach it may use it"
    named = [f"{name} at {address}" if name else address for name, address in config.addresses.items()]
    servers = ", ".join(config.replicas or named)
    many = "servers" if config.named_servers or config.replicas else "server"
    return GatewayServer(app, settings, f"[gateway] listening at {where}, {many} {servers}{who}")


def arguments() -> Parser:
    """Return the command-line parser."""
    parser = Parser(prog="stretto gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    limits = Limits()
    about = "gRPC address; default: this host, at STRETTO_PORT + 1, or 8001; NAME=HOST:PORT for each of several servers"
    add("--server", action="append", default=[], metavar="HOST:PORT", help=about)
    about = "gRPC address of one of several equal servers, among which requests are spread; repeatable"
    add("--replica", action="append", default=[], metavar="HOST:PORT", help=about)
    add("--address", type=listening_address, default=LOOPBACK, help="0.0.0.0 or :: opens the port to all hosts")
    add("--port", type=int, help="default: STRETTO_PORT + 3, or 8003")
    add(
        "--keys",
        type=argument_path,
        metavar="FILE",
        help="file of API keys, one per line; clients must send one; default: no key is needed",
    )
    about = f"file of keys, one per line, that may load and unload adapters; default: {ADMIN_KEYS}, or nobody may"
    add("--admin-keys", type=argument_path, metavar="FILE", help=about)
    add(
        "--voices",
        type=argument_path,
        metavar="FOLDER",
        default=os.environ.get(VOICES) or None,
        help=f"folder for uploaded voices; default: {VOICES}, or uploads are refused",
    )
    add(
        "--strict",
        action="store_true",
        default=os.environ.get(STRICT, "") not in ("", "0"),
        help=f"refuse unsupported request fields instead of ignoring them; default: {STRICT}=1, or off",
    )
    about = "serve the family FAMILY also under the model name NAME; repeatable"
    add("--model-alias", type=model_alias, action="append", default=[], metavar="NAME=FAMILY", help=about)
    about = f"origin whose pages may use the API (CORS); repeatable; * for any; default: {ORIGINS}, comma-separated"
    add("--cors-origin", action="append", metavar="ORIGIN", help=about)
    about = "tag of generated mp3, Opus and FLAC files; repeatable; default: that a model generated them; none: no tags"
    add("--audio-tag", type=audio_tag, action="append", metavar="NAME=VALUE", help=about)
    about = f"host whose recordings are fetched by URL; repeatable; * for any public one; default: {HOSTS}, or none"
    add("--audio-host", action="append", metavar="HOST", help=about)
    about = "recogniser for requests with check: words: self, grpc://HOST:PORT or http://HOST:PORT/v1?model=NAME"
    add(
        "--check-with",
        type=parsed_by(Address.from_text),
        metavar="NAME",
        help=f"{about}; default: none, and they are refused",
    )
    add_speech_options(parser)
    about = "maximum per key and period of requests, characters, input_audio_s or output_audio_s; repeatable"
    add(
        "--ceiling",
        type=parsed_by(Ceiling.from_text),
        action="append",
        default=[],
        metavar="MEASURE=AMOUNT/minute|day",
        help=about,
    )
    add("--certificate", type=argument_path, metavar="FILE", help="TLS with this certificate")
    add(
        "--private-key",
        type=argument_path,
        metavar="FILE",
        help="private key of the certificate; default: in the certificate file",
    )
    half = "at most half for one client; default: %(default)s"
    add("--max-active", type=int, default=limits.max_active, help=f"concurrent utterances, {half}")
    add("--max-waiting", type=int, default=limits.max_waiting, help=f"requests that may wait for a slot, {half}")
    about = "longest wait for active responses on SIGTERM; default: %(default)s"
    add("--drain-seconds", type=float, default=limits.drain_s, help=about)
    about = "longest wait for a reply to begin, for example while an idle server wakes up; default: %(default)s"
    add("--first-seconds", type=float, default=limits.first_s, metavar="SECONDS", help=about)
    about = "time for which an idle connection stays open, longer than a balancer's; default: %(default)s"
    add("--keep-alive-seconds", type=int, default=limits.keep_alive_s, metavar="SECONDS", help=about)
    for route in installed_routes():
        route.add_options(parser)
    return parser


def add_speech_options(parser: Parser) -> None:
    """Add the options of the speech cache and of receipts to a parser."""
    add = parser.add_argument
    about = "keep speech in memory, up to this size such as 256MiB, and answer equal requests from it; default: none"
    add("--speech-cache", type=memory_size, metavar="SIZE", help=about)
    about = "age after which speech in the cache is not used; default: %(default)g"
    add("--speech-cache-age", type=float, default=CACHE_AGE_S, metavar="SECONDS", help=about)
    about = "cache also requests without a seed, or in the voice of a recording; repeatable"
    add("--speech-cache-also", choices=("seedless", "voices"), action="append", default=[], help=about)
    about = "sign receipts of speech with this Ed25519 key (stretto signing-key FILE); default: no receipts"
    add("--signing-key", type=argument_path, metavar="FILE", help=about)
    about = "write C2PA manifests with receipts into whole files, by this certificate of --signing-key; default: none"
    add("--signing-certificate", type=argument_path, metavar="FILE", help=about)


def port_in_row(offset: int) -> int:
    """Return the port `offset` above STRETTO_PORT, a server's HTTP port; raise ValueError if it is invalid."""
    text = os.environ.get("STRETTO_PORT") or "8000"
    if not (text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65_535 - offset):
        raise ValueError(f"STRETTO_PORT: expected a port from 1 to {65_535 - offset}, got {text!r}")
    return int(text) + offset


def memory_size(text: str) -> int:
    """Parse a size such as `256MiB`, of at least 1 MiB, for argparse; return it in bytes."""
    match = re.fullmatch(rf"(\d{{1,6}}) ?({'|'.join(UNITS)})", text)
    num_bytes = int(match[1]) * UNITS[match[2]] if match else 0
    if num_bytes < MIB:
        expected = f"at least 1MiB, as a whole number of {', '.join(UNITS)}"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return num_bytes


def parsed_by(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Return an argparse type for the texts that `parse` accepts; `parse` raises ValueError for others."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def model_alias(text: str) -> tuple[str, str]:
    """Split `NAME=FAMILY` into its two names, for argparse."""
    name, _, family = text.rpartition("=")
    if not all(
        word.isprintable() and 0 < len(word) <= MAX_ALIAS_CHARS and word == word.strip() for word in (name, family)
    ):
        raise argparse.ArgumentTypeError(
            f"expected NAME=FAMILY of 1 to {MAX_ALIAS_CHARS} characters each, got {text!r}"
        )
    return name, family


def audio_tag(text: str) -> tuple[str, str] | None:
    """Split `NAME=VALUE` into its two parts, or return None for `none`, for argparse."""
    if text == "none":
        return None
    name, _, value = text.partition("=")
    is_name = name.isascii() and name.isprintable()  # as in Vorbis comments
    if not (is_name and name and value.isprintable() and 0 < len(value) <= MAX_TAG_CHARS >= len(name)):
        raise argparse.ArgumentTypeError(
            f"expected NAME=VALUE of 1 to {MAX_TAG_CHARS} characters each, NAME in ASCII, or none, got {text!r}"
        )
    return name, value


def read_config(args: argparse.Namespace) -> GatewayConfig:
    """Return the settings from the command line; raise ValueError or OSError if they are invalid."""
    server, named_servers = read_servers(args.server)
    if args.replica and named_servers:
        raise ValueError("--replica: expected no --server with a name, because all replicas serve one model")
    port = port_in_row(3) if args.port is None else args.port
    if not 0 <= port < 65_536:
        raise ValueError(f"--port: expected a port from 0 to 65535, got {port}")
    bounded = ("--max-active", 1, args.max_active), ("--max-waiting", 0, args.max_waiting)
    times = ("--drain-seconds", 0, args.drain_seconds), ("--keep-alive-seconds", 1, args.keep_alive_seconds)
    waits = ("--first-seconds", 1, args.first_seconds), ("--speech-cache-age", 1, args.speech_cache_age)
    for flag, least, value in (*bounded, *times, *waits):
        if not least <= value < math.inf:
            raise ValueError(f"{flag}: expected at least {least}, got {value}")
    if args.private_key is not None and args.certificate is None:
        raise ValueError("--private-key: requires --certificate FILE")
    limits = Limits(
        max_active=args.max_active,
        max_waiting=args.max_waiting,
        drain_s=args.drain_seconds,
        first_s=args.first_seconds,
        keep_alive_s=args.keep_alive_seconds,
    )
    cache = None
    if args.speech_cache is not None:
        cache = CacheSettings(args.speech_cache, args.speech_cache_age, tuple(args.speech_cache_also))
    spans_are_wanted()  # raises ValueError if the traces' dependencies are missing
    if args.voices is not None:
        args.voices.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = read_keys(args.keys)
    aliases = dict(args.model_alias)
    origins = tuple(map(origin_of, args.cors_origin or filter(None, os.environ.get(ORIGINS, "").split(","))))
    tags = SYNTHETIC if args.audio_tag is None else dict(filter(None, args.audio_tag))
    hosts = tuple(args.audio_host or filter(None, os.environ.get(HOSTS, "").split(",")))
    AudioHosts(hosts, limits)  # raises ValueError for an invalid one
    settings = [route.read_settings(args) for route in installed_routes()]
    signing_key = read_signing_key(args.signing_key)
    return GatewayConfig(
        server,
        args.address,
        port,
        keys,
        limits,
        args.voices,
        args.strict,
        aliases,
        origins,
        tags,
        audio_hosts=hosts,
        ceilings=tuple(args.ceiling),
        named_servers=named_servers,
        replicas=tuple(dict.fromkeys(args.replica)),
        check_with=args.check_with,
        cache=cache,
        signing_key=signing_key,
        file_signer=read_signing_certificate(args.signing_certificate, signing_key),
        routes=tuple(options for options in settings if options is not None),
        admin_keys=read_keys(args.admin_keys, "--admin-keys", ADMIN_KEYS),
    )


def read_servers(words: list[str]) -> tuple[str, dict[str, str]]:
    """Return the address of the only server, or the addresses of several by name.

    The last of several addresses without names counts, so that `--gateway-arg` overrides the launcher's.
    ValueError is raised if one of several servers has no name, or a name is given twice.
    """
    if not words:
        return f"localhost:{port_in_row(1)}", {}
    if not any("=" in word for word in words):
        return words[-1], {}
    named = dict[str, str]()
    for text in words:
        name, _, address = text.rpartition("=")
        if not (name.isprintable() and 0 < len(name) <= MAX_ALIAS_CHARS and name == name.strip() and address):
            expected = f"NAME=HOST:PORT for each of several servers, NAME of 1 to {MAX_ALIAS_CHARS} characters"
            raise ValueError(f"--server: expected {expected}, got {text!r}")
        if name in named:
            raise ValueError(f"--server: expected different names, got {name!r} twice")
        named[name] = address
    return "", named


def read_keys(path: Path | None, flag: str = "--keys", variable: str = KEYS) -> tuple[str, ...]:
    """Return the keys of a file and of an environment variable, neither of which is required.

    ValueError is raised for a weak key, and if the file or the variable is given but there is no key.
    """
    try:
        lines = [] if path is None else path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{flag}: expected a text file, got {path}, which is not UTF-8") from None
    keys = tuple(key for line in [*lines, *os.environ.get(variable, "").split(",")] if (key := line.strip()))
    if path is not None and not keys:
        raise ValueError(f"{flag}: expected at least one key in {path}, got none")
    if variable in os.environ and not keys:
        raise ValueError(f"{variable}: expected at least one key, got none; unset it to allow access without a key")
    if not all(len(key) >= MIN_KEY_CHARS and key.isascii() and key.isprintable() for key in keys):
        raise ValueError(f"keys: each key must have at least {MIN_KEY_CHARS} characters, all printable ASCII")
    return keys


def read_signing_key(path: Path | None) -> "Ed25519PrivateKey | None":
    """Return the key that signs receipts; raise ValueError or OSError if it is invalid. None without a path."""
    if path is None:
        return None
    from stretto_client.signature import load_private_key  # imports cryptography

    return load_private_key(path)


def read_signing_certificate(path: Path | None, key: "Ed25519PrivateKey | None") -> "FileSigner | None":
    """Return the signer of files; raise ValueError or OSError if its certificate is invalid. None without a path."""
    if path is None:
        return None
    if key is None:
        raise ValueError("--signing-certificate: requires --signing-key FILE, the key of the certificate")
    if find_spec("c2pa") is None:
        raise ValueError("--signing-certificate: needs a package that is not installed: pip install 'stretto[c2pa]'")
    from stretto_client.manifest import FileSigner  # imports c2pa

    try:
        return FileSigner(path.read_bytes(), key)
    except ValueError as error:
        raise ValueError(f"--signing-certificate: {path}: {error}") from None
