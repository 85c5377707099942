"""deploy/ray/ without Ray: server selection, leases, scaling, and the server that a replica owns."""

import asyncio
import gc
import json
import signal
import sys
import tempfile
import threading
from collections import Counter
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from stretto.launcher.background import STATES
from stretto.launcher.config import parser
from stretto_client import ServerUnavailable
from tests.gateway.test_dashboard import of_the_server

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy/ray"))

from stretto_gateway.affinity import BOUND, Candidate, ranked  # noqa: E402
from stretto_ray.leasing import AGAIN_S, leasing  # noqa: E402
from stretto_ray.scaling import ROWS_A_SERVER, WAITING, policy, wanted  # noqa: E402
from stretto_ray.server_process import ServerProcess, environment  # noqa: E402
from stretto_ray.unanswered import FORGOTTEN_S, LATE_S, Unanswered  # noqa: E402

KEYS = [f"conversation {number}" for number in range(300)]
# Writes a launcher's pid file, and records the signal that ends it.
LAUNCHER = """
import json, pathlib, signal, sys
words = dict(zip(sys.argv[1:-1:2], sys.argv[2:-1:2]))
file = pathlib.Path(words["--pid-file"])
def end(number, frame):
    pathlib.Path(sys.argv[-1]).write_text("drained")
    sys.exit()
signal.signal(signal.SIGTERM, end)
file.with_name("scratch").write_text(json.dumps({"state": "ready", "ports": {"grpc": 7}, "words": words}))
file.with_name("scratch").replace(file)
signal.pause()
"""


def servers(*loads: int) -> list[Candidate]:
    return [Candidate(f"server {number}", load) for number, load in enumerate(loads)]


def test_conversation_server_is_stable_when_servers_are_added() -> None:
    three, four = servers(0, 0, 0), servers(0, 0, 0, 0)
    before = {key: ranked(key, three, (), 1)[0] for key in KEYS}
    after = {key: ranked(key, four, (), 1)[0] for key in KEYS}
    assert min(Counter(before.values()).values()) > 60
    assert all(after[key] in (before[key], "server 3") for key in KEYS)
    assert all(ranked(key, three, (before[key],), 1)[0] == ranked(key, three, (), 1)[1] for key in KEYS)


def test_overloaded_server_is_ranked_last() -> None:
    key = next(key for key in KEYS if ranked(key, servers(0, 0, 0), (), 1)[0] == "server 0")
    assert ranked(key, servers(7, 0, 0), (), 8)[0] == "server 0", "so many do it no harm"
    assert ranked(key, servers(8, 0, 0), (), 8)[-1] == "server 0"
    mean = 40
    most = int(BOUND * mean)
    assert ranked(key, servers(most, mean, mean), (), 8)[0] == "server 0"
    assert ranked(key, servers(2 * mean, mean, mean), (), 8)[-1] == "server 0"


def test_least_busy_server_is_chosen_without_a_conversation() -> None:
    assert ranked("", servers(3, 1, 2), (), 8) == ["server 1", "server 2", "server 0"]
    assert {ranked("", servers(0, 0), (), 8)[0] for _ in range(200)} == {"server 0", "server 1"}


def test_unready_servers_rank_after_ready_and_refusing_ones_last() -> None:
    candidates = [Candidate("a", 0, is_ready=False), Candidate("b", 0), Candidate("c", 5)]
    assert ranked("x", candidates, ["b"], 8) == ["c", "a", "b"]
    assert ranked("", candidates, ["b", "c"], 8) == ["a", "b", "c"]
    assert ranked("", candidates[1:], ["b", "c"], 8) == ["b", "c"]


def test_conversation_server_is_stable_when_all_servers_are_late() -> None:
    late = [Candidate(f"server {number}", 0, is_ready=False) for number in range(3)]
    assert all(ranked(key, late, (), 1) == ranked(key, servers(0, 0, 0), (), 1) for key in KEYS)
    assert {ranked("", late, (), 1)[0] for _ in range(200)} == {"server 0", "server 1", "server 2"}


def test_unanswered_server_is_late_until_it_answers_or_expires() -> None:
    assert LATE_S < AGAIN_S, "or else the same would be asked again"
    now = 100.0
    unanswered = Unanswered(lambda: now)
    unanswered.sent("a")
    unanswered.sent("b")
    assert not unanswered.is_late("a")
    now += 2 * LATE_S
    unanswered.sent("a")
    unanswered.answered("b")
    assert unanswered.is_late("a"), "since it was asked first"
    assert not unanswered.is_late("b")
    now += FORGOTTEN_S
    assert not unanswered.is_late("a"), "or else it would never be asked again"
    unanswered.sent("a")
    now += 2 * LATE_S
    assert unanswered.is_late("a")


REQUEST = ContextVar[str]("REQUEST")


class Lost(Exception):
    """Error that Ray raises for a lost replica."""


class Responses:
    """Fake Ray response stream: the replica's name, nothing, or a failure; then it waits until the replica is lost."""

    def __init__(self, name: str, kind: str, deployment: "Deployment") -> None:
        self.name, self._kind, self._deployment = name, kind, deployment
        self._told = False
        self.lost = asyncio.Event()

    def __aiter__(self) -> "Responses":
        return self

    async def __anext__(self) -> dict[str, str]:
        if self._kind == "failing":
            raise Lost
        if self._kind == "silent" or self._told:
            try:
                await self.lost.wait()
            except asyncio.CancelledError:  # Ray makes a failure of it
                raise Lost from None
            raise Lost
        self._told = True
        return {"name": self.name, "server": "host:7" if self._kind == "ready" else ""}

    def cancel(self) -> None:
        if self in self._deployment.held:
            self._deployment.held.remove(self)


class Deployment:
    """Fake deployment handle with replicas by kind; it tries replicas last that refused or did not respond."""

    def __init__(self, **kinds: str) -> None:
        self.kinds, self.lease = kinds, self
        self.asked: list[str] = []
        self.held: list[Responses] = []

    def options(self, **_: bool) -> "Deployment":
        return self

    def remote(self, key: str, refused: list[str]) -> Responses:
        assert REQUEST.get("none") == "none", "Ray takes two leases of one request for the same"
        silent = [each.name for each in self.held if self.kinds[each.name] == "silent"]
        name = min(self.kinds, key=lambda name: (name in refused, name in silent))
        self.asked.append(name)
        kind = "unready" if name in refused else self.kinds[name]
        self.held.append(Responses(name, kind, self))
        return self.held[-1]


async def test_lease_is_held_until_its_utterance_ends() -> None:
    REQUEST.set("one")
    deployment = Deployment(a="unready", b="ready", c="ready")
    async with leasing(lambda: deployment, (Lost,))("", ()) as lease:
        assert (lease.name, lease.server, [each.name for each in deployment.held]) == ("b", "host:7", ["b"])
        assert not lease.lost.done()
        deployment.held[0].lost.set()
        await lease.lost
    assert not deployment.held


async def test_all_servers_refusing_is_reported_immediately() -> None:
    deployment = Deployment(a="unready", b="ready")
    with pytest.raises(ServerUnavailable, match="no server"):
        async with leasing(lambda: deployment, (Lost,))("", ("b",)):
            pass
    assert len(deployment.asked) == 2, "a, and one that has refused before"
    assert not deployment.held


async def test_unresponsive_server_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_ray.leasing.AGAIN_S", 0.01)
    deployment, complaints = Deployment(a="silent", b="ready"), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told["message"]))
    async with leasing(lambda: deployment, (Lost,))("", ()) as lease:
        assert lease.name == "b"
        assert [each.name for each in deployment.held] == ["b"], "the other is asked no longer"
    assert deployment.asked == ["a", "b"]
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()
    assert not complaints


async def test_no_responding_server_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto_ray.leasing.AGAIN_S", 0.01)
    monkeypatch.setattr("stretto_ray.leasing.LEASE_S", 0.1)
    for kind, error in (("silent", "TimeoutError"), ("failing", "Lost")):
        deployment = Deployment(a=kind, b=kind)
        with pytest.raises(ServerUnavailable, match=error):
            async with leasing(lambda: deployment, (Lost,))("", ()):  # noqa: B023
                pass
        assert not deployment.held


@pytest.mark.parametrize(
    ("utterances", "rows", "running", "expected"),
    [
        (0, 0, 1, 0),
        (10, 0, 1, 1),
        (11, 0, 1, 2),
        (10, ROWS_A_SERVER, 1, 1),
        (10, ROWS_A_SERVER + 1, 1, 2),
        (31, 99, 2, 4),
    ],
)
def test_replicas_scale_with_utterances_and_waiting_rows(
    utterances: float, rows: float, running: int, expected: int
) -> None:
    assert wanted(utterances, rows, running, 10) == expected
    context = SimpleNamespace(
        aggregated_metrics={WAITING: {"a": rows}},
        total_num_requests=utterances,
        current_num_replicas=running,
        config=SimpleNamespace(target_ongoing_requests=10),
    )
    assert policy(context) == (expected, {})


@pytest.fixture(autouse=True)
def folder_of_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make servers, which keep their logs, write them in the test's own folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


async def test_ray_server_process_starts_reports_state_and_drains(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    server = ServerProcess((sys.executable, "-c", LAUNCHER), "127.0.0.1", 5.0, (str(ended),))
    await server.until_ready()
    assert server.state() == "ready" in STATES
    words = json.loads(server._pid_file.read_text())["words"]
    flags, passed = parser().parse_known_args([word for pair in words.items() for word in pair])
    assert not passed, "the product has every flag"
    assert (flags.http_port, flags.grpc_port, flags.metrics_port) == (0, 0, 0), "any that are free"
    assert (flags.address, server.address) == ("127.0.0.1", "127.0.0.1:7")
    assert flags.drain_seconds == 5.0
    server.stop()
    assert (server.state(), ended.read_text()) == ("ended", "drained")
    assert server.log.is_relative_to(tmp_path)


async def test_ray_server_start_failure_reports_the_reason() -> None:
    server = ServerProcess((sys.executable, "-c", "import sys; sys.exit('no GPU here')"), "127.0.0.1", 5.0)
    with pytest.raises(RuntimeError, match="no GPU here"):
        await server.until_ready()


async def test_a_server_ends_with_the_process_that_owns_it(tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    owner = f"""
import asyncio, os, signal, sys
sys.path.insert(0, {str(ROOT / "deploy/ray")!r})
from stretto_ray.server_process import ServerProcess
server = ServerProcess((sys.executable, "-c", {LAUNCHER!r}), "127.0.0.1", 5.0, ({str(ended)!r},))
asyncio.run(server.until_ready())
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", owner, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert int(await process.stdout.readline()) > 0
    assert await process.wait() == -signal.SIGKILL
    while not ended.exists():
        await asyncio.sleep(0.05)


@pytest.mark.usefixtures("proxy_variables")
async def test_waiting_rows_are_read_from_the_metrics_endpoint() -> None:
    assert "stretto_waiting_requests" in of_the_server()
    page = b'# TYPE stretto_waiting_requests gauge\nstretto_waiting_requests{model="language_model"} 5.0\n'

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/metrics"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    server = ServerProcess((sys.executable, "-c", LAUNCHER), "127.0.0.1", 5.0, ("/dev/null",))
    try:
        assert server.waiting_rows() == 0.0, "nobody listens yet"
        await server.until_ready()
        server._pid_file.write_text(json.dumps({"state": "ready", "ports": {"metrics": served.server_address[1]}}))
        assert server.waiting_rows() == 5.0
    finally:
        server.stop()
        served.shutdown()
        served.server_close()


def test_server_environment_excludes_ray_worker_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_ID", "OMP_NUM_THREADS", "PYTHONPATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    told = environment()
    assert told["CUDA_VISIBLE_DEVICES"] == "1"
    assert not {"RAY_JOB_ID", "OMP_NUM_THREADS", "PYTHONPATH"} & set(told)


def test_documented_commands_start_ray_with_a_token() -> None:
    """Whoever can reach a node's ports can start processes there, and Ray listens on all addresses."""
    page = (ROOT / "docs/scale.md").read_text()
    commands = page[page.index("uv venv ray") : page.index("stretto_ray.app:build")]
    assert commands.index("export RAY_AUTH_MODE=token") < commands.index("get-auth-token") < commands.index("ray start")
