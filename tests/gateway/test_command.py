"""`stretto gateway`: options, refused configurations, and exit."""

import asyncio
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stretto.launcher.config import parser as launcher_parser
from stretto_client.signature import load_private_key, make_key
from stretto_contract.listening import listen, place
from stretto_gateway.command import (
    KEYS,
    ORIGINS,
    STRICT,
    VOICES,
    arguments,
    main,
    make_server,
    raise_file_limit,
    read_config,
    with_fewer_connections,
)
from stretto_gateway.config import GatewayConfig
from stretto_gateway.encoding import SYNTHETIC
from tests.client.fake_server import Until
from tests.gateway.conftest import NUM_SAMPLES, SPOKEN, Start
from tests.patience import PATIENCE_S
from tests.signing_certificates import chain

KEY = "0123456789abcdef"


def test_keys_from_file_and_environment_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\n {KEY}-1 \n\n{KEY}-2\n")
    monkeypatch.setenv(KEYS, f"{KEY}-3, {KEY}-4,")
    config = read_config(arguments().parse_args(["--keys", str(file), "--server", "host:1", "--port", "0"]))
    assert config.keys == tuple(f"{KEY}-{n}" for n in (1, 2, 3, 4))
    assert KEY not in repr(config)


def test_voices_folder_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_config(arguments().parse_args(["--port", "0"])).voices is None
    monkeypatch.setenv(VOICES, str(tmp_path / "a" / "voices"))
    config = read_config(arguments().parse_args(["--port", "0"]))
    assert config.voices == tmp_path / "a" / "voices"
    assert config.voices.stat().st_mode & 0o777 == 0o700
    assert read_config(arguments().parse_args(["--voices", str(tmp_path), "--port", "0"])).voices == tmp_path


def test_cors_origins_are_read_from_option_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def origins(*words: str) -> tuple[str, ...]:
        return read_config(arguments().parse_args([*words, "--port", "0"])).cors_origins

    assert origins() == ()
    assert origins("--cors-origin", "https://App.example/", "--cors-origin=http://[::1]:5173") == (
        "https://app.example",
        "http://[::1]:5173",
    )
    monkeypatch.setenv(ORIGINS, "http://a,*")
    assert origins() == ("http://a", "*")
    for bad in ("app.example", "https://", "https://a/b", "null", "https://*.example/x", ""):
        with pytest.raises(ValueError, match="--cors-origin: expected an origin such as"):
            origins("--cors-origin", bad)


def test_strict_is_read_from_option_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not read_config(arguments().parse_args(["--port", "0"])).strict
    assert read_config(arguments().parse_args(["--port", "0", "--strict"])).strict
    for value, expected in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(STRICT, value)
        assert read_config(arguments().parse_args(["--port", "0"])).strict is expected


def test_gateway_strict_and_model_alias_flags() -> None:
    config = read_config(arguments().parse_args(["--port", "0"]))
    assert (config.strict, config.model_aliases) == (False, {})
    words = ["--port", "0", "--strict", "--model-alias", "my/voice=tiny", "--model-alias", "a=b=csm"]
    config = read_config(arguments().parse_args(words))
    assert (config.strict, config.model_aliases) == (True, {"my/voice": "tiny", "a=b": "csm"})


def test_audio_tags_replace_the_default() -> None:
    def found(*words: str) -> Any:
        return read_config(arguments().parse_args([*words, "--port", "0"])).audio_tags

    assert found() == SYNTHETIC
    assert found("--audio-tag", "none") == {}
    assert found("--audio-tag", "A=b=c", "--audio-tag=DATE=2026") == {"A": "b=c", "DATE": "2026"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--audio-tag", "A"], "--audio-tag: expected NAME=VALUE of 1 to 500 characters each"),
        (["--audio-tag", "A="], "--audio-tag: expected NAME=VALUE"),
        (["--audio-tag", "ß=b"], "--audio-tag: expected NAME=VALUE"),
        (["--audio-tag", "A=" + "b" * 501], "--audio-tag: expected NAME=VALUE"),
        (["--audio-tag", "A=b\nc"], "--audio-tag: expected NAME=VALUE"),
        (["--model-alias", "tiny"], "--model-alias: expected NAME=FAMILY"),
        (["--model-alias", "=tiny"], "--model-alias: expected NAME=FAMILY"),
        (["--model-alias", "a="], "--model-alias: expected NAME=FAMILY"),
        (["--model-alias", "a\n=tiny"], "--model-alias: expected NAME=FAMILY"),
        (["--model-alias", "a" * 201 + "=tiny"], "--model-alias: expected NAME=FAMILY"),
        (["--keys", "/nowhere/keys"], "/nowhere/keys"),
        (["--voices", "/dev/null/voices"], "/dev/null/voices"),
        (["--keys", "/dev/null"], "--keys: expected at least one key in /dev/null, got none"),
        (["--keys", sys.executable], f"--keys: expected a text file, got {sys.executable}"),
        (["--port", "70000"], "--port"),
        (["--max-active", "0"], "--max-active: expected at least 1, got 0;"),
        (["--max-waiting", "-2"], "--max-waiting: expected at least 0, got -2;"),
        (["--drain-seconds", "-0.5"], "--drain-seconds: expected at least 0, got -0.5;"),
        (["--drain-seconds", "nan"], "--drain-seconds: expected at least 0, got nan;"),
        (["--first-seconds", "0.5"], "--first-seconds: expected at least 1, got 0.5;"),
        (["--drain-seconds", "inf"], "--drain-seconds: expected at least 0, got inf;"),
        (["--private-key", "mine"], "--private-key: requires --certificate FILE"),
        (["--signing-certificate", "mine"], "--signing-certificate: requires --signing-key FILE"),
        (["--certificate", "/nowhere/mine", "--port", "0"], "--certificate /nowhere/mine"),
        (["--certificate", "/dev/null", "--port", "0"], "--certificate /dev/null"),
        (["--address", "here"], "--address"),
        (["--sing"], "--sing"),
        (["--check-with", "me"], "--check-with: expected 'self', grpc://HOST:PORT or "),
    ],
)
def test_usage_errors_are_one_line_with_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    errors = capsys.readouterr().err
    assert (left.value.code, errors.count("\n")) == (2, 1)
    assert told in errors


@pytest.mark.parametrize("port", ["80a", "-1", "0", "65533", "1" * 5000, "²"])
def test_invalid_ports_are_rejected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str
) -> None:
    monkeypatch.setenv("STRETTO_PORT", port)
    with pytest.raises(SystemExit):
        main(["--server", "host:1"])
    assert "STRETTO_PORT: expected a port from 1 to 65532" in capsys.readouterr().err
    config = read_config(arguments().parse_args(["--server", "host:1", "--server", "host:2", "--port", "9"]))
    assert (config.server, config.port) == ("host:2", 9), "the last one counts, as of other options"


def test_default_ports_derive_from_the_server_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_PORT", "9000")
    config = read_config(arguments().parse_args([]))
    assert (config.server, config.port) == ("localhost:9001", 9003)


@pytest.mark.parametrize("keys", ["hunter2", f"{KEY},hunter2", f"hunter2-ключ-{KEY}", f"hunter2-\x1b-{KEY}", "", " , "])
def test_invalid_keys_are_refused_without_being_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keys: str
) -> None:
    monkeypatch.setenv(KEYS, keys)
    with pytest.raises(SystemExit):
        main(["--server", "nowhere", "--port", "0"])
    assert "hunter2" not in capsys.readouterr().err


def test_gateway_port_in_use_prints_one_line_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen at 127.0.0.1:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("[::]", "::"),
        ("[::1]", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
    ],
)
def test_address_to_listen_on_may_be_written_in_each_usual_form(text: str, address: str) -> None:
    assert arguments().parse_args(["--address", text]).address == address
    assert launcher_parser().parse_args(["--address", text]).address == address


@pytest.mark.parametrize("text", ["", "*", "myhost", "127.0.0.1:8003", "[::1", "::1]", "[127.0.0.1", "256.0.0.1", "[]"])
def test_wrong_address_is_refused_with_the_right_forms(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments().parse_args(["--address", text])
    message = capsys.readouterr().err
    assert f"without a port, got {text!r}" in message
    assert ":: for all IPv6 and IPv4 addresses" in message
    assert message.count("\n") == 1


def test_address_of_another_host_is_reported_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "0", "--address", "192.0.2.1"]) == 1
    assert capsys.readouterr().err == "stretto gateway: cannot listen at 192.0.2.1:0: Cannot assign requested address\n"


def accepts(listener: socket.socket) -> bool:
    """Return True if a connection waits at a listening socket, and close it."""
    listener.setblocking(False)
    with suppress(BlockingIOError):
        listener.accept()[0].close()
        return True
    return False


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize(
    ("address", "hosts", "shown"),
    [
        ("::", ("127.0.0.1", "::1"), " (all IPv6 and IPv4 addresses), server"),
        ("::1", ("::1",), ", server"),
        ("0.0.0.0", ("127.0.0.1",), " (all IPv4 addresses), server"),
    ],
)
async def test_gateway_listens_at_the_address_and_prints_it(address: str, hosts: tuple[str, ...], shown: str) -> None:
    config = read_config(arguments().parse_args(["--address", address, "--port", "0"]))
    with listen(config.address, config.port, backlog=8) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
                is_connected = client.connect_ex((host, port)) == 0  # at another address, perhaps to another program
                assert (is_connected and accepts(listener)) == (host in hosts)
        assert f"listening at http://{place(address, port)}{shown}" in make_server(config, listener).message


async def test_shutdown_is_unready_but_completes_open_responses(start: Start) -> None:
    go = asyncio.Event()
    running = await start([SPOKEN[0], Until(go), *SPOKEN[1:]])
    request = {"model": "tts-1", "input": "A cat.", "response_format": "pcm"}
    async with running.http() as http, http.stream("POST", "/v1/audio/speech", json=request) as answer:
        parts = answer.aiter_bytes()
        data = await anext(parts)
        running.server.handle_exit(signal.SIGTERM, None)
        transport = httpx.ASGITransport(running.app)  # for it listens no longer
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as inside:
            assert (await inside.get("/health/ready")).status_code == 503
            assert (await inside.get("/health/live")).status_code == 200
        go.set()
        data += b"".join([part async for part in parts])
    assert len(data) == 2 * NUM_SAMPLES


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [((1024, 4096), 2048), ((1024, 1500), 1500), ((1024, -1), 2048), ((4096, 4096), None), ((-1, -1), None)],
)
def test_open_file_limit_is_raised(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], wanted: int | None
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    monkeypatch.setattr("resource.setrlimit", lambda _, new: told.append(new))
    assert raise_file_limit(2048) == (wanted or 2048)
    assert told == ([] if wanted is None else [(wanted, limits[1])])


@pytest.mark.parametrize(
    ("hard", "expected"), [(-1, 1024), (1 << 20, 1024), (2112, 1024), (2111, 1023), (256, 96), (70, 8)]
)
def test_connections_fit_within_the_open_file_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hard: int, expected: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, hard))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    assert with_fewer_connections(GatewayConfig("host:1")).limits.max_connections == expected
    said = f"[gateway] at most {expected} connections instead of 1024, because the hard limit on open files is {hard}"
    assert capsys.readouterr().err.startswith(said) == (expected < 1024)


@pytest.mark.slow
def test_idle_connections_beyond_the_file_limit_block_no_request() -> None:
    """400 connections to a process that may open 256 files."""
    code = "import sys; from stretto_gateway.command import main; sys.exit(main())"
    limited = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
    command = [*limited, sys.executable, "-c", code, "--server", "127.0.0.1:1", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as gateway, ExitStack() as held:
        held.callback(gateway.terminate)
        assert gateway.stderr is not None
        assert gateway.stderr.readline().startswith("[gateway] at most 96 connections instead of 1024")
        port = int(gateway.stderr.readline().partition(" at http://127.0.0.1:")[2].partition(",")[0])
        for _ in range(400):
            held.enter_context(socket.create_connection(("127.0.0.1", port), None, ("127.0.0.2", 0)))
        for _ in range(6):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=PATIENCE_S) as answer:
                assert answer.status == 200


def test_printed_address_is_valid_in_a_browser() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for address, shown in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
            server = make_server(GatewayConfig("host:1", address=address), listener)
            assert f" http://{shown}:{listener.getsockname()[1]}, " in server.message


async def test_starting_without_keys_prints_a_warning(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    await start()
    assert "it has no keys, so everyone who can reach it may use it" in capsys.readouterr().err
    await start(keys=(KEY,))
    assert "whoever" not in capsys.readouterr().err


def test_certificate_of_another_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_key(tmp_path / "key.pem")
    (tmp_path / "chain.pem").write_bytes(chain(Ed25519PrivateKey.generate()))
    words = ["--signing-key", str(tmp_path / "key.pem"), "--signing-certificate", str(tmp_path / "chain.pem")]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert f"--signing-certificate: {tmp_path}/chain.pem: certificate: expected one of" in capsys.readouterr().err
    (tmp_path / "chain.pem").write_bytes(chain(load_private_key(tmp_path / "key.pem")))
    assert read_config(arguments().parse_args(words)).file_signer is not None
