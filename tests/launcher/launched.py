"""Launcher whose tritonserver is a script that can abort, hang, become ready, lose a stub, and drain."""

import functools
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from stretto.launcher import command, faults, front_ends, processes, server, supervisor
from stretto.launcher.background import STARTER
from stretto.launcher.installation import Installation
from stretto.launcher.launch import LAUNCH_ID
from stretto.launcher.processes import ProcessSnapshot, all_processes, descendants, environment_of
from stretto.launcher.triton_24_10 import start
from stretto.triton_io.flow import FlowTable
from tests.patience import PATIENCE_S
from tests.ports import free_ports

READY = "ready after"
WAITS = "TEST_WAITS"  # environment variable: factor of the delays between restarts
PROOF = "TEST_PROOF_S"  # environment variable: faults.PROOF_S
MAX_RESTARTS = "TEST_MAX_RESTARTS"  # environment variable: server.MAX_MODEL_RESTARTS
STARTED = "TEST_STARTED"  # environment variable: if set, another process starts the launcher in the background
EARLY = "TEST_EARLY"  # environment variable: a signal that reaches the launcher before it starts a server

# Started as tritonserver is. The file `aborts` counts starts that abort, `hangs` counts starts that hang (all, if it is
# negative), in the way that the file `hang` names. Otherwise it answers "ready" and has a child with a stub's name.
# The file `replies` has a line with the reply to each first request; with the file `unable`, the stub dies instead.
# With the file `serves`, it also answers over gRPC: it is ready if the file is empty.
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
if hangs > 0:
    (here / "hangs").write_text(str(hangs - 1))
if hangs:
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
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/generate_stream"):
            return self.reply(body)
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
    def reply(self, body):
        with (here / "requests").open("ab") as requests:
            requests.write(body + b"\\n")
        if (here / "unable").exists():
            (here / "unable").unlink()
            stub.kill()
            time.sleep(60)
        replies = here / "replies"
        lines = replies.read_text().splitlines() if replies.exists() else []
        reply = lines.pop(0) if lines else '{{"event": "{{\\\\"report\\\\": {{}}}}", "pcm": [0.5]}}'
        replies.write_text("\\n".join(lines))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"data: {{reply}}\\n\\n".encode())
    def log_message(self, *_):
        pass
    def address_string(self):
        return "client"
class Socket(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    pass
if (here / "gives up").exists() or (here / "serves").exists():
    import concurrent.futures, grpc
    def answer(_, context):
        if not (here / "gives up").exists():
            return bytes([8, not (here / "serves").read_text()])  # ServerReadyResponse or ModelReadyResponse
        # as Triton does a stub that has shown no life for a second
        context.abort(grpc.StatusCode.INTERNAL, "Stub process 'preprocessor_0_0' is not healthy.")
    class Answering(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(answer)
    calls = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[Answering()])
    flags = dict(flag.split("=", 1) for flag in sys.argv if "=" in flag)
    calls.add_insecure_port(flags["--grpc-address"] + ":" + flags["--grpc-port"])
    calls.start()
path = next(a.split("unix:")[1] for a in sys.argv if a.startswith("--http-address="))
Socket(path, Ready).serve_forever()
"""
# In place of the process that has imported vLLM.
SPARE = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b"engine_spare")
time.sleep(600)
"""


def serve(folder: Path, arguments: list[str], environment: dict[str, str]) -> None:
    """Run the launcher in a child of the fork server, with short waits, and exit with its code."""
    os.environ.clear()
    os.environ.update(environment)
    if STARTED in os.environ:
        os.environ[STARTER] = str(os.getpid())
        if pid := os.fork():
            os.waitpid(pid, 0)
            os._exit(0)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 2)
    os.close(output)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if nohup runs the tests
    wait, true_time, back = supervisor.Waits.wait, time.time, folder / "set back by"
    factor = float(os.environ.get(WAITS, 0.05))
    supervisor.Waits.wait = lambda self, seconds: wait(self, seconds * factor)  # type: ignore[method-assign]
    front_ends.ENGINE_SPARE_COMMAND = (sys.executable, "-c", SPARE)
    front_ends.RESTART_S = 0.1
    supervisor.POLL_S = supervisor.CHECK_INTERVAL_S = processes.CHECK_INTERVAL_S = 0.05
    start.STUCK_S = 0.5
    server.slowness = start.slowness = lambda: 1.0
    server.MAX_MODEL_RESTARTS = int(os.environ.get(MAX_RESTARTS, server.MAX_MODEL_RESTARTS))
    supervisor.GATEWAY_S = 0.5
    faults.PROOF_S = float(os.environ.get(PROOF, 0.5))
    time.time = lambda: true_time() - (float(back.read_text() or 0) if back.exists() else 0)

    def find_installation(cache: Path) -> Installation:
        if early := os.environ.get(EARLY):
            os.kill(os.getpid(), int(early))
        return Installation(folder / "tritonserver")

    command.find_installation = find_installation
    sys.exit(command.main(arguments))


@functools.cache
def fork_server() -> ForkServerContext:
    """Return a context whose processes already have the launcher's imports, which saves a second per start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Launcher:
    """Launcher process, with the methods of subprocess.Popen that tests use."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self._process: ForkServerProcess = fork_server().Process(
            target=serve, args=(folder, arguments, dict(os.environ))
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.kill, self.terminate = self._process.kill, self._process.terminate

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None if the process has not ended."""
        return self._process.exitcode

    def wait(self, timeout_s: float | None = None) -> int:
        """Return the exit code once the process has ended."""
        self._process.join(timeout_s)
        code = self._process.exitcode
        assert code is not None, f"the launcher has not ended after {timeout_s} s"
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal if the process has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Launched:
    """A launcher in its own process, and the folder of its scripted server."""

    def __init__(self, folder: Path, aborts: int, *flags: str) -> None:
        self.folder = folder
        (folder / "aborts").write_text(str(aborts))
        if not (folder / "hangs").exists():
            hang(folder, 0)
        stub = folder / "triton_python_backend_stub"  # a process is named by its file
        stub.unlink(missing_ok=True)
        stub.write_bytes(Path("/bin/sh").read_bytes())
        stub.chmod(0o755)
        script = folder / "tritonserver"
        script.write_text(SERVER.format(python=sys.executable, here=str(folder)))
        script.chmod(0o755)
        self.ports = free_ports(3)
        ports = [str(port) for port in self.ports]
        arguments = ["--http-port", ports[0], "--grpc-port", ports[1], "--metrics-port", ports[2]]
        arguments += ["--pid-file", str(folder / "serve.json"), "--cache", str(folder)]
        arguments += ["--log-file", str(folder / "server.log")]
        (folder / "output").write_bytes(b"")
        self.process = Launcher(folder, [*arguments, *flags])

    @property
    def said(self) -> str:
        """The launcher's output."""
        return (self.folder / "output").read_text()

    @property
    def num_ready(self) -> int:
        """Number of times that the server, or its models after a restart, became ready."""
        return self.said.count(READY)

    @property
    def num_starts(self) -> int:
        """Number of starts of the server."""
        return (self.folder / "starts").read_text().count("\n")

    @property
    def reloads(self) -> list[str]:
        """Calls to the server's repository API."""
        return (self.folder / "reloads").read_text().split()

    @property
    def launch_id(self) -> str:
        """Id of the launcher instance; only its pid if no server was started."""
        starts = self.folder / "starts"
        return starts.read_text().split()[0] if starts.exists() else f"{self.process.pid}_"

    @property
    def server_pid(self) -> int:
        """Pid of the server that became ready last."""
        return int(re.findall(r"; pid (\d+)$", self.said, re.MULTILINE)[-1])

    @property
    def stub(self) -> int:
        """Pid of the newest stub."""
        return int((self.folder / "stub").read_text())

    @property
    def state(self) -> str | None:
        """State in the launcher's pid file, or None if there is no file."""
        path = self.folder / "serve.json"
        with suppress(FileNotFoundError):  # the launcher may remove it at any time
            return str(json.loads(path.read_text())["state"])
        return None

    def until(self, condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    def until_ready(self, times: int = 1) -> None:
        """Wait until the server has become ready this number of times."""
        self.until(lambda: self.num_ready == times)

    def kill_stub(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send the newest stub a signal, and return its pid."""
        pid = self.stub
        os.kill(pid, number)
        return pid

    def leftovers(self) -> list[str]:
        """Return the names of the launcher instance's files in shared memory."""
        return [path.name for path in Path("/dev/shm").glob(f"stretto_launch_{self.launch_id}*")]

    def processes(self) -> list[ProcessSnapshot]:
        """Return the running processes that the launcher has started."""
        return [each for each in all_processes() if environment_of(each.pid, LAUNCH_ID) == self.launch_id]

    def children(self, program: str) -> list[int]:
        """Return the pids of the processes that run the module `program` for the launcher."""
        return [each.pid for each in descendants(self.process.pid) if f"-m {program} " in each.command]

    def proxies(self) -> list[int]:
        """Return the pids of the launcher's proxies."""
        return self.children("stretto.proxy")


Launch = Callable[..., Launched]


def hang(folder: Path, times: int, way: str = "") -> None:
    """Make the scripted server hang at its next `times` starts; if negative, at all starts until the next call."""
    (folder / "hangs").write_text(str(times))
    (folder / "hang").write_text(way)


def answers(port: int) -> bool:
    """Return True if a process listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def busy_table(server_pid: int) -> FlowTable:
    """Return an acknowledgement table of the server in which one stream is in flight."""
    table = FlowTable.create(server_pid, 4)
    table.claim()
    return table
