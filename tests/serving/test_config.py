"""Flags: ours are read, others are tritonserver's."""

from pathlib import Path

from stretto.serving.config import launch_config, parser
from stretto.serving.installation import Installation
from stretto.serving.leftovers import Launch
from stretto.serving.server import command_line


def parse(*arguments: str) -> tuple[object, list[str]]:
    flags, passed = parser().parse_known_args(arguments)
    return launch_config(flags, passed), passed


def test_the_defaults_are_tritons_ports_and_our_repository() -> None:
    config, _ = parse()
    assert config.ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert (config.model_repository / "speech" / "config.pbtxt").exists()
    assert config.log_file == config.cache / "server-8000.log"


def test_unknown_flags_go_to_tritonserver_and_win(tmp_path: Path) -> None:
    config, passed = parse("--http-port", "9000", "--log-verbose=1", "--exit-timeout-secs=3", "--grpc-port=9001")
    assert passed == ["--log-verbose=1", "--exit-timeout-secs=3"]
    line = command_line(config, Installation(Path("/t"), ("--backend-directory=/b",)), Launch("7_x", 0, tmp_path))
    assert line[0] == "/t"
    assert {"--http-port=9000", "--grpc-port=9001", "--metrics-port=8002", "--backend-directory=/b"} < set(line)
    assert line.index("--exit-timeout-secs=3") > line.index("--exit-timeout-secs=10")
    assert "--backend-config=python,shm-region-prefix-name=stretto_launch_7_x_" in line


def test_a_dash_logs_to_standard_output() -> None:
    config, _ = parse("--log-file", "-")
    assert config.log_file is None
