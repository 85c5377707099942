"""The launcher's own flags are parsed, and others are passed to tritonserver."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stretto.launcher import installation
from stretto.launcher.config import GATEWAY_PATH_FLAGS, launch_config, parser
from stretto.launcher.installation import Installation, LaunchError, state_folder
from stretto.launcher.launch import Launch
from stretto.launcher.server import command_line
from stretto.proxy.messages import Ports, ProxyConfig
from stretto_client.console import argument_path
from stretto_gateway.command import arguments as gateway_arguments


def parse(*arguments: str) -> tuple[object, list[str]]:
    flags, passed = parser().parse_known_args(arguments)
    return launch_config(flags, passed), passed


def test_defaults_are_triton_ports_and_bundled_repository() -> None:
    config, _ = parse()
    assert config.ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert (config.model_repository / "speech" / "config.pbtxt").exists()
    assert config.log_file == state_folder() / "server-8000.log"
    assert config.pid_file == state_folder() / "server-8000.pid"


@pytest.mark.parametrize(
    ("arguments", "address"),
    [((), "127.0.0.1"), (("--gateway-arg=--address=::",), "::"), (("--gateway-arg=--address=[::1]",), "::1")],
)
def test_announced_address_of_the_gateway_is_its_own(arguments: tuple[str, ...], address: str) -> None:
    config, _ = parse("--gateway", "--gateway-arg=--strict", *arguments)
    assert config.gateway_address == address


def test_dictionary_is_checked_before_the_start(tmp_path: Path) -> None:
    lexicon = tmp_path / "lexicon.json"
    lexicon.write_text('{"SQL": "sequel"}')
    (config, _), (without, _) = parse("--pronunciations", str(lexicon)), parse()
    assert (config.pronunciations, without.pronunciations) == (lexicon, None)
    assert config.model.configuration != without.model.configuration
    lexicon.write_text('{"SQL": ""}')
    with pytest.raises(LaunchError, match=r"--pronunciations: .*lexicon\.json: SQL: expected 1 to 400 characters"):
        parse("--pronunciations", str(lexicon))
    with pytest.raises(LaunchError, match=r"--pronunciations: none: .*No such file"):
        parse("--pronunciations", "none")


def test_zero_ports_require_a_pid_file(tmp_path: Path) -> None:
    anywhere = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    config, _ = parse(*anywhere, "--pid-file", str(tmp_path / "mine.json"))
    assert config.log_file == tmp_path / "mine.log"
    assert config.listening_at(Ports(5, 6, 7)).ports == {"http": 7, "grpc": 5, "metrics": 6}
    with pytest.raises(LaunchError, match=r"^--http-port 0: requires --pid-file"):
        parse(*anywhere)
    with pytest.raises(LaunchError, match=r"^--http-port: expected a fixed port, because with --allow http .*, got 0$"):
        parse(*anywhere, "--pid-file", "mine.json", "--allow", "http")


def test_unknown_flags_are_passed_to_tritonserver_and_override(tmp_path: Path) -> None:
    config, passed = parse("--http-port", "9000", "--log-verbose=1", "--exit-timeout-secs=3", "--grpc-port=9001")
    assert passed == ["--log-verbose=1", "--exit-timeout-secs=3"]
    line = command_line(config, Installation(Path("/t"), ("--backend-directory=/b",)), Launch("7_x", 0, tmp_path))
    assert line[0] == "/t"
    assert {"--http-port=9000", "--grpc-port=9001", "--metrics-port=8002", "--backend-directory=/b"} < set(line)
    assert line.index("--exit-timeout-secs=3") > line.index("--exit-timeout-secs=10")
    assert {"--grpc-infer-allocation-pool-size=0", "--backend-config=python,shm-default-byte-size=16777216"} < set(line)
    assert "--backend-config=python,shm-region-prefix-name=stretto_launch_7_x_" in line


def test_relative_paths_are_those_of_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tritonserver and the gateway run in another folder, so that they import nothing from the user's."""
    monkeypatch.chdir(tmp_path)
    words = ["--backend-directory=own", "--cache-directory", "../caches", "--grpc-server-key=/key"]
    traces = ["--trace-config=triton,file=trace", "--trace-config", "triton,file=t", "--trace-config", "rate=1"]
    others = ["--model-store=s3://own/models", "--backend-config=python,x=own"]
    config, _ = parse(*words, *traces, *others, "--cache", "cache", "--model-repository", "models")
    parent = tmp_path.parent
    assert config.passed == (
        *(f"--backend-directory={tmp_path}/own", "--cache-directory", f"{parent}/caches", "--grpc-server-key=/key"),
        *(f"--trace-config=triton,file={tmp_path}/trace", "--trace-config", f"triton,file={tmp_path}/t"),
        *("--trace-config", "rate=1", *others),
    )
    assert (config.cache, config.model_repository) == (tmp_path / "cache", tmp_path / "models")
    own = ("--keys=keys", "--voices", "voices", "--strict", "--audio-host", "a.example")
    config, _ = parse("--gateway", *(f"--gateway-arg={word}" for word in own))
    assert config.gateway_args == (f"--keys={tmp_path}/keys", "--voices", f"{tmp_path}/voices", *own[3:])


def test_flags_named_after_a_route_go_to_the_gateway() -> None:
    of_route = ("--webrtc-address", "::1", "--webrtc-ports=1-2")
    words = (of_route[0], of_route[1], "--log-verbose", "1", of_route[2], "--webrtcs=1")
    config, _ = parse("--gateway", *words, "--gateway-arg=--strict")
    assert (config.gateway_args, config.passed) == ((*of_route, "--strict"), ("--log-verbose", "1", "--webrtcs=1"))
    with pytest.raises(LaunchError, match="--webrtc-ports: requires --gateway"):
        parse("--webrtc-ports=1-2")


def test_paths_among_the_gateway_flags_are_known() -> None:
    actions = gateway_arguments()._actions
    named = {action.option_strings[0] for action in actions if action.type is argument_path}
    assert named == GATEWAY_PATH_FLAGS


def test_log_file_dash_means_standard_output() -> None:
    config, _ = parse("--log-file", "-")
    assert config.log_file is None


def line_of(*arguments: str) -> list[str]:
    config, _ = parse(*arguments)
    return command_line(config, Installation(Path("/t")), Launch("7_x", 0, Path("/s")))


def test_default_addresses_are_unix_sockets_and_loopback() -> None:
    config, _ = parse()
    assert (config.address, config.allowed, config.triton_ports) == ("127.0.0.1", frozenset(), {})
    addresses = [word for word in line_of() if "-address=" in word]
    assert addresses == [
        "--http-address=unix:/s/stretto_launch_7_x.run/http",
        "--grpc-address=unix:/s/stretto_launch_7_x.run/grpc",
        "--metrics-address=unix:/s/stretto_launch_7_x.run/metrics",
    ]


def test_allow_http_flag_restricts_the_other_apis() -> None:
    config, _ = parse("--allow", "http", "--address", "0.0.0.0")
    assert config.triton_ports == {"http": 8000}
    line = line_of("--allow", "http", "--allow", "trace", "--address", "0.0.0.0")
    assert "--http-address=0.0.0.0" in line
    (closed,) = [word for word in line if word.startswith("--http-restricted-api=")]
    assert closed.startswith("--http-restricted-api=shared-memory,model-repository,logging:stretto-key=")
    assert len(closed.rpartition("=")[2]) > 40
    assert "--grpc-address=unix:/s/stretto_launch_7_x.run/grpc" in line


def test_explicit_model_control_is_the_default_and_can_be_overridden() -> None:
    assert {"--model-control-mode=explicit", "--load-model=*"} < set(line_of())
    line = line_of("--model-control-mode=explicit", "--load-model=speech")
    assert [word for word in line if "-model=" in word or "control-mode" in word] == [
        "--model-control-mode=explicit",
        "--load-model=speech",
    ]


@pytest.mark.parametrize("api", ["model-repository", "http"])
def test_model_loading_is_disabled_if_clients_could_load_models(api: str) -> None:
    """A call that loads a model may contain code, and the key of the HTTP service is not secret on its host."""
    assert not [word for word in line_of("--allow", api) if "-model=" in word or "control-mode" in word]


@pytest.mark.parametrize("flag", ["--grpc-address=0.0.0.0", "--http-address", "--allow-http=true"])
def test_tritonserver_address_flags_are_refused(flag: str) -> None:
    with pytest.raises(
        LaunchError,
        match=r"^--(grpc-address|http-address|allow-http): set the listening address with --address .* --allow",
    ):
        parse(flag)


@pytest.mark.parametrize("flags", [["--address", "host"], ["--allow", "everything"]])
def test_unknown_address_or_api_flag_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*flags)
    assert repr(flags[1]) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "least", "refused", "expected"),
    [
        ("--grpc-port", "0", ["99999", "-1", "http"], "a port from 1 to 65535"),
        ("--gateway-port", "1", ["0"], "a port from 1 to 65535"),
        ("--max-request-mb", "1", ["-5", "0", "1.5", "nan", "2148"], "MB from 1 to 2147"),
        ("--start-attempts", "1", ["-1", "0", "1.5", "inf"], "a whole number from 1"),
        ("--start-seconds", "0.1", ["-1", "0", "nan", "inf", "soon"], "more than 0 seconds"),
        ("--drain-seconds", "0", ["-1", "nan", "inf", "soon"], "at least 0 seconds"),
        ("--idle-s", "0.1", ["-1", "0", "nan", "inf"], "more than 0 seconds"),
    ],
)
def test_out_of_range_limit_flag_is_refused(
    capsys: pytest.CaptureFixture[str], flag: str, least: str, refused: list[str], expected: str
) -> None:
    parse(flag, least)
    for text in refused:
        with pytest.raises(SystemExit):
            parse(f"{flag}={text}")
        assert f"argument {flag}: expected {expected}, got {text!r};" in capsys.readouterr().err


def test_gateway_flag_assigns_the_default_or_given_port() -> None:
    config, _ = parse("--gateway")
    assert config.ports["gateway"] == 8003
    config, _ = parse("--gateway", "--gateway-port", "9999")
    assert config.ports["gateway"] == 9999


def test_stop_seconds_include_gateway_and_server_drain() -> None:
    assert parse("--drain-seconds", "40")[0].stop_seconds == 70
    assert parse("--drain-seconds", "40", "--gateway")[0].stop_seconds == 110


def test_messages_between_launcher_and_proxy_are_checked_field_by_field() -> None:
    config = ProxyConfig("::1", 0, 0, None, "grpc", "metrics", "/flags", "key", ("repository",), 9, ("rm", "-r"))
    for message in (Ports(1, 2), Ports(1, 2, 3), config, replace(config, http_port=8000)):
        assert type(message).from_json(message.to_json()) == message
    for kind, change, name in (
        (Ports(1, 2), {"grpc": "1"}, "Ports.grpc"),
        (Ports(1, 2), {"http": True}, "Ports.http"),
        (Ports(1, 2), {"more": 1}, "Ports: expected an object of grpc, metrics, http"),
        (config, {"allowed": "all"}, "ProxyConfig.allowed"),
        (config, {"cleanup": [1]}, "ProxyConfig.cleanup"),
        (config, {"key": ["key"]}, "ProxyConfig.key"),
    ):
        with pytest.raises(ValueError, match=name):
            type(kind).from_json(json.dumps(json.loads(kind.to_json()) | change))
    for text in ("[]", '{"grpc": 1}', "cannot listen"):
        with pytest.raises(ValueError, match=r"expected an object|Expecting value"):
            Ports.from_json(text)


def test_help_accepts_any_folder_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installation, "clone", lambda: tmp_path / "100%z")
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    assert "100%z/.stretto" in "".join(capsys.readouterr().out.split())
