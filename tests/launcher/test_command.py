"""The launcher with a stand-in for tritonserver: a script that can abort, hang, get ready, lose a stub, and drain."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from stretto.launcher import command as serve
from stretto.launcher import front_ends, installation
from stretto.launcher.config import launch_config, parser
from stretto.launcher.faults import LAUNCH_ID, begin_launch
from stretto.launcher.front_ends import ProxyProcess
from stretto.launcher.installation import LaunchError
from stretto.launcher.launch_log import LaunchLog
from stretto.launcher.processes import Process, all_processes, environment_of
from stretto.launcher.server import MAX_MODEL_RESTARTS
from stretto.proxy.access import MODEL_INFER
from stretto.proxy.config import Ports
from stretto.triton_io.flow import FlowTable
from tests.patience import PATIENCE_S
from tests.ports import free_ports
from tests.tiers import by_night

pytestmark = pytest.mark.slow
REPOSITORY = installation.bundled_repository()

# Started as tritonserver is. Aborts as often as the file `aborts` says, or hangs as often as `hangs` does, in the way
# that `hang` names; otherwise answers "ready" and has a child that is named as a stub is.
SERVER = """#!{python}
import http.server, os, pathlib, signal, socketserver, subprocess, sys, time
here = pathlib.Path({here!r})
with (here / "starts").open("a") as starts:
    starts.write(os.environ["STRETTO_LAUNCH_ID"] + "\\n")
if (here / "fails silently").exists():
    sys.exit(1)
print("the server starts", flush=True)
left = int((here / "aborts").read_text())
if left:
    (here / "aborts").write_text(str(left - 1))
    print("boost::interprocess::lock_exception", flush=True)
    os.abort()
if unknown := [a for a in sys.argv if a.startswith("--sing")]:
    print(f"/opt/bin/tritonserver: unrecognized option '{{unknown[0]}}'\\nUsage:\\n  --log-error <boolean>", flush=True)
    sys.exit(1)
if (here / "fails").exists():
    print("E1 \\"failed to load 'language_model' version 1: Internal: no checkpoint\\"", flush=True)
    sys.exit(1)
prefix = next(a for a in sys.argv if "shm-region-prefix-name=" in a).split("shm-region-prefix-name=")[1]
pathlib.Path("/dev/shm", prefix + "region").touch()
model = "/models/preprocessor/1/model.py" if (here / "reloads").exists() else "/of/no/model"
def start_stub():
    does = "exit 1" if (here / "dies").exists() else "read line"
    stub = subprocess.Popen([here / "triton_python_backend_stub", "-c", does, model, "x"], stdin=subprocess.PIPE)
    (here / "stub").write_text(str(stub.pid))
    return stub
stub, old_stubs = start_stub(), []
hangs = int((here / "hangs").read_text())
if hangs:
    (here / "hangs").write_text(str(hangs - 1))
    if (here / "hang").read_text() == "lost":
        stub.kill()
        time.sleep(60)
    stub.wait()
signal.signal(signal.SIGTERM, lambda *_: (stub.kill(), os._exit(0)))
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        global stub
        self.rfile.read(int(self.headers["Content-Length"]))
        with (here / "reloads").open("a") as reloads:
            reloads.write(self.path.removeprefix("/v2/repository/") + "\\n")
        refuses = self.path.endswith("/load") and (here / "refuses").exists()
        while self.path.endswith("/load") and (here / "slow").exists():
            time.sleep(0.01)
        if self.path.endswith("/load") and not refuses:
            old_stubs.append(stub)  # Triton notices the end of one only when its requests are over
            stub = start_stub()
        self.send_response(400 if refuses else 200)
        self.end_headers()
        self.wfile.write(b'[{{"name": "preprocessor", "state": "READY"}}]')
    def log_message(self, *_):
        pass
    def address_string(self):
        return "client"
class Socket(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    pass
if (here / "gives up").exists():  # as Triton does a stub that has shown no life for a second
    import concurrent.futures, grpc
    class Refusing(grpc.GenericRpcHandler):
        def service(self, details):
            said = "Stub process 'preprocessor_0_0' is not healthy."
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(grpc.StatusCode.INTERNAL, said))
    calls = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[Refusing()])
    flags = dict(flag.split("=", 1) for flag in sys.argv if "=" in flag)
    calls.add_insecure_port(flags["--grpc-address"] + ":" + flags["--grpc-port"])
    calls.start()
path = next(a.split("unix:")[1] for a in sys.argv if a.startswith("--http-address="))
Socket(path, Ready).serve_forever()
"""
LAUNCH = """
import os, signal, sys, time
from pathlib import Path
from stretto.launcher import command as serve
from stretto.launcher import faults, processes, server
processes.LOOK_S = 0.05
from stretto.launcher.installation import Installation
server.STUCK_S = 0.5
server.slowness = lambda: 1.0
faults.PROOF_S = float(os.environ.get("PROOF_S", 0.5))
back, true_time = Path(sys.argv[1]).with_name("set back by"), time.time
time.time = lambda: true_time() - (float(back.read_text() or 0) if back.exists() else 0)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which it would ignore where nohup runs the tests
def find_installation(cache):
    if early := os.environ.get("EARLY"):
        os.kill(os.getpid(), int(early))
    return Installation(Path(sys.argv[1]))
serve.find_installation = find_installation
sys.exit(serve.main(sys.argv[2:]))
"""


class Launched:
    """A launcher in a process of its own, whose server is the script."""

    def __init__(self, folder: Path, aborts: int, *flags: str) -> None:
        self.folder = folder
        (folder / "aborts").write_text(str(aborts))
        if not (folder / "hangs").exists():
            hang(folder, 0)
        stub = folder / "triton_python_backend_stub"  # a process is named by its file
        stub.unlink(missing_ok=True)
        stub.write_bytes(Path("/bin/sh").read_bytes())
        stub.chmod(0o755)
        server = folder / "tritonserver"
        server.write_text(SERVER.format(python=sys.executable, here=str(folder)))
        server.chmod(0o755)
        self.ports = free_ports(3)
        ports = [str(port) for port in self.ports]
        arguments = ["--http-port", ports[0], "--grpc-port", ports[1], "--metrics-port", ports[2]]
        arguments += ["--pid-file", str(folder / "serve.json"), "--cache", str(folder)]
        arguments += ["--log-file", str(folder / "server.log")]
        self.output = (folder / "output").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(server), *arguments, *flags], stderr=self.output
        )

    @property
    def said(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def launch_id(self) -> str:
        """With the pid alone where no server was started."""
        starts = self.folder / "starts"
        return starts.read_text().split()[0] if starts.exists() else f"{self.process.pid}_"

    @property
    def stub(self) -> int:
        return int((self.folder / "stub").read_text())

    def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    @property
    def state(self) -> str | None:
        path = self.folder / "serve.json"
        return json.loads(path.read_text())["state"] if path.exists() else None

    def leftovers(self) -> list[str]:
        return [path.name for path in Path("/dev/shm").glob(f"stretto_launch_{self.launch_id}*")]

    def processes(self) -> list[Process]:
        """What the launcher has started and is still there."""
        return [each for each in all_processes() if environment_of(each.pid, LAUNCH_ID) == self.launch_id]


def hang(folder: Path, times: int, way: str = "") -> None:
    (folder / "hangs").write_text(str(times))
    (folder / "hang").write_text(way)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    made: list[Launched] = []

    def start(aborts: int = 0, *flags: str) -> Launched:
        made.append(Launched(tmp_path, aborts, *flags))
        return made[-1]

    yield start
    for each in made:
        each.process.terminate()
        each.process.wait(PATIENCE_S)
        each.output.close()


def test_a_server_is_started_watched_and_stopped(launch: Callable[..., Launched], tmp_path: Path) -> None:
    server = launch()
    server.until(lambda: "ready after" in server.said)
    record = json.loads((tmp_path / "serve.json").read_text())
    assert (record["pid"], record["state"]) == (server.process.pid, "ready")
    assert len(server.leftovers()) == 3  # the lock, the server's region, the folder of sockets
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    assert "drained" in server.said
    assert server.leftovers() == []
    assert not (tmp_path / "serve.json").exists()


def test_who_starts_a_gateway_is_told_where_its_page_is(launch: Callable[..., Launched]) -> None:
    (port,) = free_ports(1)
    server = launch(0, "--gateway", "--gateway-port", str(port))
    server.until(lambda: f"[serve] the page: http://127.0.0.1:{port}/\n" in server.said)


def test_aborted_starts_are_tried_again(launch: Callable[..., Launched]) -> None:
    server = launch(2)
    server.until(lambda: "ready after" in server.said)
    assert "start 2 of 10 aborted: the server ended with signal SIGABRT: boost" in server.said


def test_a_server_that_aborts_every_time_is_given_up(launch: Callable[..., Launched]) -> None:
    server = launch(9, "--start-attempts=2")
    assert server.process.wait(PATIENCE_S) == 1
    assert "aborted 2 times; last error: the server ended with signal SIGABRT: boost" in server.said
    assert server.leftovers() == []


HANGS = {"waiting": "waited for a stub to end", "lost": "not noticed the end of a stub"}


@pytest.mark.parametrize("way", ["lost", *by_night("waiting")])
def test_a_start_that_hangs_is_tried_again(launch: Callable[..., Launched], tmp_path: Path, way: str) -> None:
    hang(tmp_path, 1, way)
    server = launch()
    server.until(lambda: "ready after" in server.said)
    assert f"start 1 of 10 aborted: the server has {HANGS[way]} for 0.5 s" in server.said
    assert (tmp_path / "starts").read_text().count("\n") == 2
    assert len(server.processes()) == 2, "the server and its stub, nobody of the start that hung"


@pytest.mark.parametrize("way", ["waiting", *by_night("lost")])
def test_a_server_that_hangs_every_time_is_given_up(launch: Callable[..., Launched], tmp_path: Path, way: str) -> None:
    hang(tmp_path, 9, way)
    server = launch(0, "--start-attempts=2")
    assert server.process.wait(PATIENCE_S) == 1
    assert f"aborted 2 times; last error: the server has {HANGS[way]} for 0.5 s" in server.said
    assert f"full log: {tmp_path}" in server.said
    assert server.processes() == []
    assert server.leftovers() == []


def test_a_model_that_does_not_load_is_named_and_not_tried_again(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    (tmp_path / "fails").touch()
    server = launch()
    assert server.process.wait(PATIENCE_S) == 1
    assert "failed to load 'language_model' version 1: Internal: no checkpoint" in server.said
    assert f"full log: {tmp_path}" in server.said
    assert (tmp_path / "starts").read_text().count("\n") == 1


@pytest.mark.parametrize(("place", "flag"), [("HOME", "--pid-file and --log-file"), ("XDG_CACHE_HOME", "--cache")])
def test_a_home_that_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, flag: str
) -> None:
    """As of an installed package, whose files lie there; root may write where others may not, but not below a file."""
    home = tmp_path / "file"
    home.touch()
    monkeypatch.setattr(installation, "clone", lambda: None)
    monkeypatch.setenv("XDG_STATE_HOME", "" if place == "HOME" else str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(place, str(home))
    assert serve.main(["--model-repository", str(REPOSITORY)]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"\[serve\] cannot write {home}\S* \(Not a directory\): choose .* with {flag}\n", said)


@pytest.mark.parametrize("flag", ["--log-file", "--pid-file"])
def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    (tmp_path / "file").touch()
    flags = {"--log-file": str(tmp_path / "log"), "--pid-file": str(tmp_path / "pid")} | {
        flag: str(tmp_path / "file" / "x")
    }
    assert serve.main([*(word for pair in flags.items() for word in pair), "--cache", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{flag}" in said
    assert str(tmp_path / "file") in said


def test_a_second_launcher_leaves_the_file_of_the_first_alone(launch: Callable[..., Launched], tmp_path: Path) -> None:
    first = launch()
    first.until(lambda: "ready after" in first.said)
    record = (tmp_path / "serve.json").read_text()
    (tmp_path / "second").mkdir()
    second = Launched(tmp_path / "second", 0, "--pid-file", str(tmp_path / "serve.json"))
    assert second.process.wait(PATIENCE_S) == 1
    assert f"serve.json: a launcher is running (pid {first.process.pid})" in second.said
    assert (tmp_path / "serve.json").read_text() == record


def test_a_flag_that_nobody_knows_is_named(launch: Callable[..., Launched]) -> None:
    server = launch(0, "--sing=a song")
    assert server.process.wait(PATIENCE_S) == 1
    assert "the server ended with exit code 1: tritonserver: unrecognized option '--sing=a song'\n" in server.said


def test_a_repository_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--model-repository", str(tmp_path / "none")]) == 1
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_a_repository_without_a_model_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--model-repository", str(tmp_path)]) == 1
    assert f"no folder of {tmp_path} holds a config.pbtxt" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "port"), [("grpc", "99999"), ("grpc", "-1"), ("grpc", "http"), ("gateway", "0")])
def test_what_is_no_port_is_said(flag: str, port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, LaunchError)):
        serve.parser().parse_args([f"--{flag}-port={port}"])
    assert f"expected a port from 1 to 65535, got '{port}'" in capsys.readouterr().err


def test_a_dead_stub_restarts_the_server(launch: Callable[..., Launched]) -> None:
    server = launch()
    server.until(lambda: "ready after" in server.said)
    first = server.stub
    os.kill(first, signal.SIGKILL)
    server.until(lambda: server.said.count("ready after") == 2)
    assert f"triton_python_b (pid {first}) ended: restarting the server" in server.said
    assert server.stub != first


def proxies(launcher: int) -> list[int]:
    return [each.pid for each in all_processes() if each.parent == launcher and "stretto.proxy" in each.command]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_dead_proxy_is_started_again_at_the_ports_that_were_free_and_the_server_goes_on(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    server = launch(0, "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    server.until(lambda: "ready after" in server.said)
    ports = json.loads((tmp_path / "serve.json").read_text())["ports"]
    assert all(answers(port) for port in ports.values())
    assert Path(f"/dev/shm/stretto_launch_{server.launch_id}.run/key-{ports['grpc']}").exists()
    assert f"http {ports['http']}, grpc {ports['grpc']}, metrics {ports['metrics']}" in server.said
    (first,) = proxies(server.process.pid)
    os.kill(first, signal.SIGKILL)
    server.until(lambda: proxies(server.process.pid) not in ([], [first]))
    server.until(lambda: all(answers(port) for port in ports.values()))
    assert server.said.count("ready after") == 1
    server.process.kill()
    server.process.wait()
    server.until(lambda: not any(answers(port) for port in ports.values()))


def test_a_proxy_whose_port_is_taken_meanwhile_is_started_again_once_it_is_free(
    launch: Callable[..., Launched],
) -> None:
    server = launch()
    server.until(lambda: server.state == "ready")
    (first,) = proxies(server.process.pid)
    os.kill(server.process.pid, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)
    server.until(lambda: not answers(server.ports[1]))
    with socket.create_server(("127.0.0.1", server.ports[1])):
        os.kill(server.process.pid, signal.SIGCONT)
        tried = set[int]()
        server.until(lambda: bool(tried.update(proxies(server.process.pid)) or len(tried - {first}) > 1))
    server.until(lambda: answers(server.ports[1]))
    assert server.process.poll() is None
    assert server.said.count("ready after") == 1


def test_a_stopped_proxy_is_replaced(launch: Callable[..., Launched]) -> None:
    server = launch()
    server.until(lambda: server.state == "ready")
    (first,) = proxies(server.process.pid)
    os.kill(first, signal.SIGSTOP)
    server.until(lambda: f"[serve] the proxy (pid {first}) is stopped\n" in server.said)
    server.until(lambda: proxies(server.process.pid) not in ([], [first]))
    server.until(lambda: server.state == "ready" and answers(server.ports[1]))
    assert server.said.count("ready after") == 1, "the server went on"


def test_a_proxy_that_hangs_as_it_starts_ends_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start_of_a_program(monkeypatch, "import sys, time; sys.stdin.readline(); time.sleep(3600)")
    monkeypatch.setattr(front_ends, "START_S", 0.2)
    monkeypatch.setattr(front_ends, "slowness", lambda: 1.0)
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    flags, passed = parser().parse_known_args([*ports, "--pid-file", str(tmp_path / "serve.json")])
    launch, log = begin_launch(), LaunchLog(tmp_path / "log")
    try:
        with pytest.raises(LaunchError, match=r"^the proxy did not listen within 0 s; see the log$"):
            ProxyProcess(launch_config(flags, passed), launch, log)
    finally:
        log.close()
        launch.close()


def test_a_proxy_that_hangs_as_it_starts_again_does_not_hold_up_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = tmp_path / "says"
    says.write_text(Ports(1, 2, 3).to_json() + "\n")
    program = f"import sys, time; print(open({str(says)!r}).read(), end='', flush=True); time.sleep(3600)"
    start_of_a_program(monkeypatch, program)
    flags, passed = parser().parse_known_args(["--pid-file", str(tmp_path / "serve.json")])
    launch, log = begin_launch(), LaunchLog(tmp_path / "log")
    proxy = ProxyProcess(launch_config(flags, passed), launch, log)
    try:
        assert (proxy.ports, proxy.given_up()) == (Ports(1, 2, 3), None)
        says.write_text("")
        first = end_of(proxy)
        proxy.keep_alive()  # returns, although the next one writes nothing
        assert proxy.fault() == "the proxy is being restarted"
        assert proxy.given_up() is None
        says.write_text(Ports(1, 2, 3).to_json() + "\npreprocessor\n")
        assert end_of(proxy) != first
        proxy.keep_alive()
        deadline = time.monotonic() + PATIENCE_S
        while (model := proxy.given_up()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert model == "preprocessor", "the line before it has ports"
    finally:
        proxy.stop()
        log.close()
        launch.close()


def start_of_a_program(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Have the launcher's log start this program instead of any other."""
    start = LaunchLog.start

    def replaced(log: LaunchLog, command: list[str], **options: Any) -> Any:
        return start(log, [sys.executable, "-c", program], **options)

    monkeypatch.setattr(LaunchLog, "start", replaced)


def end_of(proxy: ProxyProcess) -> int:
    """Kill the proxy, wait for its end, and return its pid."""
    process = proxy._process
    process.kill()
    process.wait(PATIENCE_S)
    return process.pid


def test_with_a_stopped_gateway_the_server_is_not_ready_until_that_is_replaced(
    launch: Callable[..., Launched],
) -> None:
    def gateways() -> list[int]:
        known = all_processes()
        return [each.pid for each in known if each.parent == server.process.pid and "stretto_gateway" in each.command]

    (port,) = free_ports(1)
    server = launch(0, "--gateway", "--gateway-port", str(port))
    server.until(lambda: server.state == "ready" and answers(port))
    (first,) = gateways()
    os.kill(first, signal.SIGSTOP)
    server.until(lambda: server.state == "unready")
    server.until(lambda: gateways() not in ([], [first]))
    server.until(lambda: server.state == "ready" and answers(port))
    assert f"[serve] the gateway (pid {first}) is stopped\n" in server.said
    assert "[serve] the gateway is being restarted\n" in server.said
    assert server.said.count("ready after") == 1, "the server went on"


def test_a_log_on_a_full_disk_ends_and_hinders_nothing(launch: Callable[..., Launched]) -> None:
    server = launch(0, "--log-file", "/dev/full")
    server.until(lambda: server.state == "ready")
    os.kill(server.stub, signal.SIGKILL)
    server.until(lambda: server.said.count("ready after") == 2)
    assert "lines are dropped until it can: No space left on device\n" in server.said


def test_the_reason_of_a_failed_start_is_of_that_start(launch: Callable[..., Launched], tmp_path: Path) -> None:
    server = launch(1)  # which writes an error
    server.until(lambda: server.state == "ready")
    (tmp_path / "fails silently").touch()
    os.kill(server.stub, signal.SIGKILL)
    server.until(lambda: "the start failed: " in server.said)
    assert "the start failed: the server ended with exit code 1: no error message" in server.said


def may_raise_priority() -> bool:
    program = "import os; os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) - 10)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_raise_priority(), reason="this user may not raise a priority")
def test_a_server_that_is_started_again_goes_before_others_until_it_is_ready(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    def niceness() -> int | None:
        try:
            return os.getpriority(os.PRIO_PROCESS, server.stub) - os.getpriority(os.PRIO_PROCESS, 0)
        except (ProcessLookupError, ValueError):
            return None  # there is none now

    server = launch()
    server.until(lambda: server.state == "ready")
    assert niceness() == 0
    hang(tmp_path, 1_000_000, "waiting")
    os.kill(server.stub, signal.SIGKILL)
    highest = -20 - os.getpriority(os.PRIO_PROCESS, 0)  # the tests may run raised themselves
    server.until(lambda: niceness() == max(-10, highest))
    hang(tmp_path, 0)
    server.until(lambda: server.said.count("ready after") == 2)
    assert niceness() == 0


def test_a_taken_port_is_named(launch: Callable[..., Launched]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = launch(0, f"--metrics-port={port}")
        assert server.process.wait(PATIENCE_S) == 1
    assert f"port {port} is in use: choose another with --metrics-port" in server.said


def test_what_was_ready_once_is_started_again_for_as_long_as_it_takes(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    """Also where a first start would have ended the launcher: it aborts too often, or a model does not load."""
    server = launch(0, "--start-attempts=1")
    server.until(lambda: server.state == "ready")
    (tmp_path / "fails").touch()
    os.kill(server.stub, signal.SIGKILL)
    server.until(lambda: server.said.count("the start failed: ") == 2)
    assert server.state in ("waiting", "starting")
    (tmp_path / "aborts").write_text("2")
    (tmp_path / "fails").unlink()
    server.until(lambda: server.said.count("ready after") == 2)
    assert server.said.count("start 1 of unlimited aborted: ") == 1
    assert server.said.count("start 2 of unlimited aborted: ") == 1
    assert server.process.poll() is None


RELOAD = ["models/preprocessor/unload", "models/preprocessor/load", "index"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_model_whose_stub_dies_or_stops_is_started_again_and_nothing_else(
    launch: Callable[..., Launched], tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "reloads").touch()
    server = launch()
    server.until(lambda: server.state == "ready")
    first = server.stub
    os.kill(first, number)
    server.until(lambda: server.said.count("ready after") == 2)
    assert f"triton_python_b (pid {first}) " in server.said
    assert ": restarting preprocessor\n" in server.said
    assert (tmp_path / "reloads").read_text().split() == RELOAD
    assert (tmp_path / "starts").read_text().count("\n") == 1
    assert server.stub != first
    os.kill(server.stub, signal.SIGKILL)  # the new one is watched as the first was
    server.until(lambda: server.said.count("ready after") == 3)
    assert (tmp_path / "starts").read_text().count("\n") == 1


def test_after_several_restarts_of_models_the_server_is_started_again_as_triton_frees_none_of_them(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    (tmp_path / "reloads").touch()
    server = launch()
    for number in range(MAX_MODEL_RESTARTS + 2):
        server.until(lambda number=number: server.said.count("ready after") == number + 1)
        os.kill(server.stub, signal.SIGKILL)
    server.until(lambda: server.said.count("ready after") == MAX_MODEL_RESTARTS + 3)
    assert (tmp_path / "reloads").read_text().split() == RELOAD * (MAX_MODEL_RESTARTS + 1)
    assert (tmp_path / "starts").read_text().count("\n") == 2


def test_a_model_that_triton_takes_for_dead_is_started_again_and_nothing_else(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    (tmp_path / "reloads").touch()
    (tmp_path / "gives up").touch()
    server = launch()
    server.until(lambda: server.state == "ready")
    first = server.stub
    with grpc.insecure_channel(f"127.0.0.1:{server.ports[1]}") as channel:
        infer = channel.unary_unary(MODEL_INFER, service_pb2.ModelInferRequest.SerializeToString)
        with pytest.raises(grpc.RpcError, match="a process of the server has ended and is being restarted; try again"):
            infer(service_pb2.ModelInferRequest(model_name="speech"), wait_for_ready=True)
    server.until(lambda: server.said.count("ready after") == 2)
    assert f"triton_python_b (pid {first}) is taken for dead by Triton: restarting preprocessor\n" in server.said
    assert (tmp_path / "reloads").read_text().split() == RELOAD
    assert (tmp_path / "starts").read_text().count("\n") == 1
    assert server.stub != first


def test_a_model_that_cannot_be_loaded_again_restarts_the_server(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    (tmp_path / "reloads").touch()
    (tmp_path / "refuses").touch()
    server = launch()
    server.until(lambda: server.state == "ready")
    os.kill(server.stub, signal.SIGKILL)
    server.until(lambda: server.said.count("ready after") == 2)
    assert "the models could not be restarted: models/preprocessor/load: " in server.said
    assert "the next start is in" not in server.said, "its model has had that delay"
    assert (tmp_path / "starts").read_text().count("\n") == 2


def test_a_stopped_process_is_said_and_when_it_stays_so_the_server_is_started_again(
    launch: Callable[..., Launched],
) -> None:
    server = launch()
    server.until(lambda: server.state == "ready")
    first = server.stub
    os.kill(first, signal.SIGSTOP)
    reason = f"triton_python_b (pid {first}) is stopped"
    server.until(lambda: f"{reason}: restarting the server" in server.said)
    server.until(lambda: server.said.count("ready after") == 2)
    assert server.stub != first


def test_a_server_whose_clock_is_set_back_is_started_again(launch: Callable[..., Launched], tmp_path: Path) -> None:
    server = launch()
    server.until(lambda: server.state == "ready")
    (tmp_path / "set back by").write_text("3600")
    server.until(lambda: "the clock was set back by 3600 s: restarting the server" in server.said)
    server.until(lambda: server.said.count("ready after") == 2)


def test_a_process_that_goes_on_by_itself_costs_nothing_but_readiness(
    launch: Callable[..., Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROOF_S", "600")
    server = launch()
    server.until(lambda: server.state == "ready")
    first = server.stub
    os.kill(first, signal.SIGSTOP)
    server.until(lambda: server.state == "unready")
    os.kill(first, signal.SIGCONT)
    server.until(lambda: server.state == "ready")
    assert server.said.count("ready after") == 1
    assert server.stub == first


def test_streams_that_never_end_delay_the_stop_only_so_long(
    launch: Callable[..., Launched],
) -> None:
    server = launch(0, "--drain-seconds=0.5")
    server.until(lambda: "ready after" in server.said)
    pid = int(server.said.rpartition("pid ")[2])
    table = busy_table(pid)
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    assert "stopping with 1 streams still open" in server.said
    table.remove()


def test_a_second_signal_stops_at_once(launch: Callable[..., Launched], tmp_path: Path) -> None:
    server = launch(0, "--drain-seconds=600")
    server.until(lambda: "ready after" in server.said)
    table = busy_table(int(server.said.rpartition("pid ")[2]))
    server.process.terminate()
    server.until(lambda: json.loads((tmp_path / "serve.json").read_text())["state"] == "draining")
    time.sleep(0.4)
    assert server.process.poll() is None
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) == 0
    table.remove()


def test_killing_the_launcher_takes_the_server_along_and_the_next_one_cleans_up(
    launch: Callable[..., Launched],
) -> None:
    server = launch()
    server.until(lambda: "ready after" in server.said)
    server.process.kill()
    server.process.wait()
    following = launch()
    following.until(lambda: "ready after" in following.said)
    assert server.leftovers() == []  # any launcher that starts meanwhile may have been first, another test's too


def test_a_killed_launcher_leaves_neither_a_process_nor_shared_memory(launch: Callable[..., Launched]) -> None:
    server = launch()
    server.until(lambda: "ready after" in server.said)
    with subprocess.Popen(["sleep", "600"], env=os.environ | {LAUNCH_ID: server.launch_id}) as engine:
        server.process.kill()
        server.process.wait()
        assert engine.wait(PATIENCE_S) == -signal.SIGKILL, "as an engine, which no dead parent ends"
    server.until(lambda: server.leftovers() == [] and server.processes() == [])


def busy_table(server_pid: int) -> FlowTable:
    table = FlowTable.create(server_pid, 4)
    table.claim()
    return table
