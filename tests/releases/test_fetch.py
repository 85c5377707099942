"""Questions to the hub and downloads, with each fault of the hub: the right bytes arrive, or the message is right."""

import gzip
import hashlib
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import numpy as np
import pytest
from safetensors.numpy import save

from stretto.releases.catalogue import RepositoryFiles
from stretto.releases.fetch import PATIENCE_S, WORK_S, _BoundedStream, _check_destination
from stretto.releases.hub import Hub, RemoteListing, Snapshot
from stretto.releases.hub import address as hub_address
from stretto.releases.messages import ReleaseError
from stretto.releases.target import detect
from stretto.untrusted_files import SHARED_MARKER
from tests import hub as loopback
from tests.hub import Repository
from tests.patience import until
from tests.tiers import by_night

WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {"config.json": b"{}", "voices/a.txt": b"a", "model.safetensors": WEIGHTS}
ALL = RepositoryFiles("acme/any", ("*",))
NUMBERS = count()
NOW = {"Retry-After": "0"}


def prepared(monkeypatch: pytest.MonkeyPatch, home: Path, address: str, **more: str) -> None:
    """Set the environment of a client whose cache is `home`."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    for name, value in ({"HF_ENDPOINT": address, "HF_HOME": str(home)} | more).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def server() -> Iterator[loopback.Hub]:
    """Yield a hub; each test adds a repository."""
    with loopback.Hub() as server:
        server.grants = {"granted": set(), "other": set()}
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(server: loopback.Hub, home: Path) -> Iterator[Hub]:
    """Yield the client of all tests that need no other environment; its process is started once."""
    with pytest.MonkeyPatch.context() as monkeypatch, Hub() as client:
        prepared(monkeypatch, home, server.url)
        client.worker._process  # noqa: B018 - starts with this environment
        yield client


@pytest.fixture
def repository(server: loopback.Hub) -> Repository:
    return server.add(f"acme/voice-{next(NUMBERS)}", FILES, card={"license": "mit"})


def fetched(client: Hub, repository: Repository) -> dict[str, dict[str, Any]]:
    snapshot = client.snapshot(repository.name, None)
    return client.download(snapshot, snapshot.selected(ALL), lambda num_bytes: None)


def contents(found: dict[str, dict[str, Any]]) -> dict[str, bytes]:
    return {name: Path(facts["place"]).read_bytes() for name, facts in found.items()}


def cache_of(home: Path, repository: Repository) -> Path:
    return home / "hub" / f"models--{repository.name.replace('/', '--')}"


def parts(home: Path, repository: Repository) -> list[Path]:
    return list(cache_of(home, repository).rglob("*.incomplete"))


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """Return exit status and message of the ReleaseError that a call raises."""
    with pytest.raises(ReleaseError) as caught:
        call()
    return caught.value.status, str(caught.value)


def test_snapshot_and_download(client: Hub, server: loopback.Hub, repository: Repository, home: Path) -> None:
    snapshot = client.snapshot(repository.name, None)
    assert (snapshot.commit, snapshot.licence) == (repository.branches["main"], "mit")
    assert {name: facts["size"] for name, facts in snapshot.files.items()} == {
        name: len(data) for name, data in FILES.items()
    }
    done: list[int] = []
    found = client.download(snapshot, snapshot.selected(ALL), done.append)
    assert contents(found) == FILES
    assert found["model.safetensors"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert sum(done) >= len(WEIGHTS)
    before = len(server.requests)
    again = client.download(snapshot, snapshot.selected(ALL), done.append)
    assert again == found
    assert len(server.requests) == before, "files of a known commit are in the cache"


@pytest.mark.parametrize(
    ("pattern", "settings"),
    [
        pytest.param("GET /{}/model.safetensors/", {"drop_after": 100_000}, id="drop"),
        pytest.param("GET /{}/model.safetensors/", {"drop_after": 100_000, "resets": True}, id="reset"),
        pytest.param("GET /{}/model.safetensors/", {"short": 500}, id="short"),
        pytest.param("GET /{}/model.safetensors/", {"is_wrong": True}, id="wrong-weights"),
        pytest.param("GET /{}/resolve/.*/config.json", {"is_wrong": True}, id="wrong-config"),
        pytest.param("GET /{}/model.safetensors/", {"status": 429, "headers": NOW}, id="429-weights"),
        pytest.param("GET /{}/model.safetensors/", {"status": 503, "headers": NOW}, id="503-weights"),
        pytest.param("HEAD /{}/resolve/", {"status": 429, "headers": NOW}, id="429-head"),
        pytest.param("HEAD /{}/resolve/", {"status": 503, "headers": NOW}, id="503-head"),
        pytest.param("/api/models/{}", {"status": 429, "headers": NOW, "times": 3}, id="429-info"),
        pytest.param("/api/models/{}", {"status": 503, "headers": NOW, "times": 3}, id="503-info"),
    ],
)
def test_temporary_fault_is_overcome(
    pattern: str, settings: dict[str, Any], client: Hub, server: loopback.Hub, repository: Repository, home: Path
) -> None:
    fault = server.fail(pattern.format(repository.name), **settings)
    assert contents(fetched(client, repository)) == FILES
    assert fault.times <= 0, "the fault occurred"
    assert not parts(home, repository)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("GET /{}/model.safetensors/", "model.safetensors", hashlib.sha256(WEIGHTS).hexdigest()),
        ("GET /{}/resolve/.*/config.json", "config.json", loopback.Blob("config.json", b"{}").git),
    ],
)
def test_wrong_bytes_twice_are_refused_and_removed(
    pattern: str, name: str, expected: str, client: Hub, server: loopback.Hub, repository: Repository, home: Path
) -> None:
    server.fail(pattern.format(repository.name), is_wrong=True, times=2)
    status, message = refusal(lambda: fetched(client, repository))
    assert status == 1
    assert message.startswith(f"{name}: expected the hash {expected}, got ")
    assert message.endswith(" twice")
    cache = cache_of(home, repository)
    assert not list(cache.glob(f"snapshots/*/{name}"))
    assert not (cache / "blobs" / expected).exists()
    assert contents(fetched(client, repository)) == FILES


def test_failing_new_protocol_falls_back(client: Hub, repository: Repository, server: loopback.Hub) -> None:
    repository.has_xet = True
    assert contents(fetched(client, repository)) == FILES
    assert any("xet-read-token" in each.path and repository.name in each.path for each in server.requests)


def test_permanent_status_is_reported_at_once(client: Hub, server: loopback.Hub, repository: Repository) -> None:
    server.fail(f"/api/models/{repository.name}", status=418, times=9)
    status, message = refusal(lambda: client.snapshot(repository.name, None))
    assert status == 5
    assert message.startswith(f"{repository.name}: the hub answers with status 418: ")


@pytest.mark.parametrize(
    ("change", "revision", "name", "status", "message"),
    [
        pytest.param({}, "v9", None, 5, "{}: no revision v9", id="revision"),
        pytest.param({}, None, "none.txt", 5, "{} @ {:.7}: no file none.txt, which the release must have", id="file"),
        pytest.param({"private": True}, None, None, 5, "{}: no such public repository; a private one needs HF_TOKEN"),
        pytest.param(
            {"gated": "manual"}, None, None, 6, "{} needs your consent: open {hub}/{}, then run hf auth login"
        ),
    ],
)
def test_what_the_hub_does_not_give(
    change: dict[str, Any],
    revision: str | None,
    name: str | None,
    status: int,
    message: str,
    client: Hub,
    server: loopback.Hub,
    repository: Repository,
) -> None:
    for key, value in change.items():
        setattr(repository, key, value)
    commit = repository.branches["main"]

    def select() -> None:
        client.snapshot(repository.name, revision).selected(RepositoryFiles(repository.name, (name or "*",)))

    expected = message.replace("{}", repository.name).replace("{hub}", server.url).replace("{:.7}", commit[:7])
    assert refusal(select) == (status, expected)


def test_file_that_is_listed_but_missing(client: Hub, repository: Repository) -> None:
    snapshot = client.snapshot(repository.name, None)
    files = {"gone.bin": dict(snapshot.files["config.json"])}
    expected = (5, f"{repository.name} @ {snapshot.commit[:7]}: no file gone.bin")
    assert refusal(lambda: client.download(snapshot, files, lambda num_bytes: None)) == expected
    assert refusal(lambda: client.text(snapshot, "gone.bin", 2)) == expected
    assert client.text(snapshot, "config.json", 2) == "{}"
    assert client.text(snapshot, "config.json", 1) is None


@pytest.mark.parametrize(
    ("token", "status", "message"),
    [
        ("other", 6, "{}: your account has no access yet: open {hub}/{}"),
        ("bad", 6, "the hub rejects the token in HF_TOKEN, --token-file or of hf auth login"),
        ("granted", 0, ""),
    ],
)
def test_gate_with_a_token(
    token: str,
    status: int,
    message: str,
    server: loopback.Hub,
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository.gated = "manual"
    server.grants["granted"].add(repository.name)
    prepared(monkeypatch, tmp_path, server.url)
    first = len(server.requests)
    with Hub(token) as client:
        if status:
            expected = message.replace("{}", repository.name).replace("{hub}", server.url)
            assert refusal(lambda: fetched(client, repository)) == (status, expected)
            return
        assert contents(fetched(client, repository)) == FILES
        command = Path(f"/proc/{client.worker._process.pid}/cmdline").read_bytes()
    assert token.encode() not in command
    asked = server.requests[first:]
    assert {each.token for each in asked if each.storage} == {None}, "the token is only for the hub itself"
    assert {each.token for each in asked if not each.storage} == {token}
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if token.encode() in path.read_bytes()]


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{closed.getsockname()[1]}"
        prepared(monkeypatch, tmp_path, f"http://{place}")
        with Hub() as client:
            status, message = refusal(lambda: client.snapshot("acme/voice", None))
    assert status == 5
    assert message.startswith(f"cannot reach {place}: ")
    assert message.endswith("Connection refused; installed models run without it")


def test_parts_of_ended_processes_are_removed(client: Hub, repository: Repository, home: Path) -> None:
    fetched(client, repository)
    blobs = cache_of(home, repository) / "blobs"
    (blobs / f"{'0' * 40}.1234abcd.incomplete").write_bytes(b"part")
    fetched(client, repository)
    assert not parts(home, repository)


def test_only_the_files_of_a_commit_are_removed(
    client: Hub, server: loopback.Hub, repository: Repository, home: Path
) -> None:
    copy = server.add(f"{repository.name}-copy", FILES)
    snapshot, other = client.snapshot(repository.name, None), client.snapshot(copy.name, None)
    assert snapshot.commit == other.commit
    fetched(client, repository)
    kept = fetched(client, copy)
    assert client.remove({(repository.name, snapshot.commit, "model.safetensors")}) == len(WEIGHTS)
    left = [path for path in cache_of(home, repository).rglob("snapshots/*/**/*") if path.is_file()]
    assert sorted(path.name for path in left) == ["a.txt", "config.json"]
    repository.commit(FILES | {"config.json": b"[]"})
    renewed = fetched(client, repository)
    assert client.remove({(repository.name, snapshot.commit, name) for name in FILES}) == len(b"{}")
    assert contents(renewed) == FILES | {"config.json": b"[]"}, "another commit shares blobs"
    assert not (cache_of(home, repository) / "snapshots" / snapshot.commit).exists()
    assert contents(kept) == FILES


def test_file_in_the_shared_store_is_used(client: Hub, repository: Repository, home: Path) -> None:
    """The hub's newer protocol stores a file once for all repositories, behind a second link."""
    first = fetched(client, repository)["model.safetensors"]
    digest = "ab" + "0" * 62
    shared = home / "hub" / "blobs" / digest[:2] / digest
    shared.parent.mkdir(parents=True)
    (home / "hub" / "blobs" / SHARED_MARKER).touch()
    blob = Path(first["place"]).resolve()
    blob.rename(shared)
    blob.symlink_to(shared)
    assert fetched(client, repository)["model.safetensors"] == first


def test_blob_that_links_elsewhere_is_refused(client: Hub, repository: Repository, tmp_path: Path) -> None:
    place = Path(fetched(client, repository)["model.safetensors"]["place"])
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    blob = place.resolve()
    blob.unlink()
    blob.symlink_to(secret)
    status, message = refusal(lambda: fetched(client, repository))
    assert status == 1
    assert message.endswith(f"expected a file of this release, got a link to {secret}")
    assert secret.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../x", "a/../../b", "C:x", "/x", "a//b", "a\\b", "a\0b", ".", "x" * 300])
def test_name_that_is_no_path_is_refused_before_a_request(
    name: str, client: Hub, server: loopback.Hub, repository: Repository
) -> None:
    repository.extra_names = (name,)
    snapshot = client.snapshot(repository.name, None)
    before = len(server.requests)
    status, message = refusal(lambda: snapshot.selected(ALL))
    assert (status, message) == (5, f"{repository.name}: the file name {name[:80]!r} cannot be used")
    assert len(server.requests) == before


def test_names_that_differ_only_in_case_are_refused(client: Hub, repository: Repository) -> None:
    repository.commit(FILES | {"X": b"1", "x": b"2"})
    snapshot: Snapshot = client.snapshot(repository.name, None)
    message = f"{repository.name}: the file names 'X' and 'x' differ only in case"
    assert refusal(lambda: snapshot.selected(ALL)) == (5, message)


class Answers:
    """Answer of the hub to questions about a repository, changed by each test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def change(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the record that the hub sends."""
        original = loopback._Handler.information

        def information(handler: Any, repository: Repository, sha: str) -> Any:
            record = original(handler, repository, sha)
            changed = change(record)
            return record if changed is None else changed

        self._monkeypatch.setattr(loopback._Handler, "information", information)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


@pytest.mark.parametrize("commit", ["../../x", "a" * 39, "A" * 40, "", None, 5, ["a"]])
def test_odd_commit_is_refused(commit: object, client: Hub, repository: Repository, answers: Answers) -> None:
    answers.change(lambda record: record.update(sha=commit))
    message = f"{repository.name}: expected a commit of 40 hexadecimal digits, got {commit!r}"
    assert refusal(lambda: client.snapshot(repository.name, None)) == (5, message)


@pytest.mark.parametrize("size", [None, -1, "5", 1.5, True, [1]])
def test_odd_size_is_refused(size: object, client: Hub, repository: Repository, answers: Answers) -> None:
    answers.change(lambda record: record["siblings"][0].update(size=size))
    snapshot = client.snapshot(repository.name, None)
    message = f"{repository.name}: config.json: expected a size in bytes, got {size!r}"
    assert refusal(lambda: snapshot.selected(ALL)) == (5, message)
    assert refusal(lambda: RemoteListing(client, snapshot).text("config.json")) == (5, message)


@pytest.mark.parametrize("oid", [None, "x" * 40, "a" * 64, 5])
def test_file_without_a_hash_is_refused(oid: object, client: Hub, repository: Repository, answers: Answers) -> None:
    answers.change(lambda record: record["siblings"][0].update(blobId=oid))
    snapshot = client.snapshot(repository.name, None)
    message = f"{repository.name}: config.json: expected a hash, got {oid!r:.60}"
    assert refusal(lambda: snapshot.selected(ALL))[1].startswith(message)


def test_huge_sizes_and_listings_are_refused(client: Hub, repository: Repository, answers: Answers) -> None:
    answers.change(lambda record: record["siblings"][0].update(size=10**30))
    snapshot = client.snapshot(repository.name, None)
    status, message = refusal(lambda: snapshot.selected(ALL))
    assert (status, message.partition(", got ")[0]) == (5, f"{repository.name}: expected at most 200 GB")
    assert RemoteListing(client, snapshot).text("config.json") is None
    repository.extra_names = tuple(map(str, range(10_000)))
    message = f"{repository.name}: expected at most 10000 files, got 10003"
    assert refusal(lambda: client.snapshot(repository.name, None)) == (5, message)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        "text",
        {"id": "acme/voice", "siblings": 5},
        {"id": "acme/voice", "siblings": [5]},
        {"id": "acme/voice", "siblings": [{"rfilename": ["a"]}]},
        {"id": "acme/voice", "siblings": [{"rfilename": "a", "lfs": {"size": 1}}]},
        {"id": "acme/voice", "lastModified": "no date"},
    ],
)
def test_malformed_answer_is_reported_in_one_line(
    answer: Any, client: Hub, repository: Repository, answers: Answers
) -> None:
    answers.change(lambda record: answer)
    status, message = refusal(lambda: client.snapshot(repository.name, None).selected(ALL))
    assert status in (1, 5)
    assert repository.name in message
    assert "\n" not in message
    assert "Traceback" not in message


def test_nested_answer_is_reported(client: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def send_json(handler: Any, record: Any, headers: dict[str, str] | None = None) -> None:
        handler.answer(200, b"[" * 1_000_000, "application/json", {})

    monkeypatch.setattr(loopback._Handler, "send_json", send_json)
    status, message = refusal(lambda: client.snapshot(repository.name, None))
    assert status in (1, 5)
    assert repository.name in message
    assert "Traceback" not in message


@pytest.mark.parametrize(("licence", "expected"), [({"a": 1}, None), (5, None), (None, None), ("x" * 1000, "x" * 100)])
def test_licence_is_a_short_text_or_unknown(
    licence: object, expected: str | None, client: Hub, repository: Repository
) -> None:
    repository.card["license"] = licence
    assert client.snapshot(repository.name, None).licence == expected


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", *by_night("http://127.0.0.1:1/x")])
def test_redirect_that_cannot_be_followed_is_reported(
    address: str, client: Hub, repository: Repository, server: loopback.Hub, home: Path
) -> None:
    server.fail(f"GET /{repository.name}/model.safetensors/", status=302, headers={"Location": address}, times=9)
    status, message = refusal(lambda: fetched(client, repository))
    assert status in (1, 5)
    assert "Traceback" not in message
    assert not parts(home, repository)


ADDRESSES = {
    "hub.example": "93.184.215.14",
    "files.example": "93.184.215.15",
    "inside.example": "10.0.0.7",
    "mirror.internal": "10.0.0.8",
}
INSIDE = ["https://169.254.169.254/x", "https://127.0.0.1/x", "https://[::1]/x", "https://[fd00::1]/x"]


@pytest.mark.parametrize(
    ("endpoint", "address", "message"),
    [
        *(("https://hub.example", address, "on the internet") for address in [*INSIDE, "https://inside.example/x"]),
        ("https://hub.example", "http://files.example/x", "begins with https://"),
        ("https://hub.example", "https://files.example/x", None),
        ("https://hub.example", "https://unknown.example/x", None),  # a proxy may know it
        ("http://mirror.internal", "http://127.0.0.1/x", None),  # a user's own hub may be anywhere
    ],
)
def test_redirect_into_a_private_network_is_refused(
    endpoint: str, address: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = list[str]()

    def resolved(host: str, port: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        if "unknown" in host:
            raise socket.gaierror
        return [(0, 0, 0, "", (ADDRESSES.get(host, host), 0))]

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(str(request.url))
        return httpx2.Response(302, headers={"Location": address}) if len(sent) == 1 else httpx2.Response(200)

    monkeypatch.setattr("stretto.releases.fetch.socket.getaddrinfo", resolved)
    monkeypatch.setattr("stretto.releases.fetch.constants.ENDPOINT", endpoint)
    hooks: dict[str, list[Callable[..., Any]]] = {"request": [_check_destination]}
    client = httpx2.Client(transport=httpx2.MockTransport(answer), event_hooks=hooks, follow_redirects=True)
    if message is None:
        assert client.get(f"{endpoint}/model").status_code == 200
        return
    with pytest.raises(ReleaseError, match=message):
        client.get(f"{endpoint}/model")
    assert sent == [f"{endpoint}/model"]


def safetensors(offsets: object) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def headed(record: object, num_bytes: int | None = None) -> bytes:
    """Return a safetensors file with a header of any JSON, and any length before it."""
    header = json.dumps(record).encode()
    return (len(header) if num_bytes is None else num_bytes).to_bytes(8, "little") + header + bytes(4)


def described(shape: object, dtype: object = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}


HEADERS = {
    "a million dimensions": headed(described([10**15] * 1_000_000)),
    "dimensions": headed(described([1] * 9)),
    "negative": headed(described([-1, -1])),
    "size": headed(described([10**30])),
    "text": headed(described(["1"])),
    "no list": headed(described(1)),
    "product": headed(described([2])),
    "dtype": headed(described([1], [])),
    "long": headed(described([1]), 10**18),
    "longer than the file": headed(described([1]), 10_000),
    "empty": headed(described([1]), 0),
    "no header": b"abc",
    "no object": headed([1, 2]),
    "nested": headed({"a": json.loads("[" * 200 + "]" * 200)}),
    **{f"offsets {odd}": safetensors(odd) for odd in ([0, 2**62], [0], [-1, 4], ["0", "4"], [0, 4, 8], None, "ab")},
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_header_is_refused_with_little_work(name: str, client: Hub, repository: Repository) -> None:
    repository.commit({"model.safetensors": HEADERS[name]})
    snapshot = client.snapshot(repository.name, None)
    before_s = processor_s(client)
    status, message = refusal(lambda: client.header(snapshot, "model.safetensors"))
    assert (status, message.partition("model.safetensors: ")[0]) == (1, f"{repository.name}: ")
    assert "Traceback" not in message
    assert len(message) < 400
    assert processor_s(client) - before_s < WORK_S / 10


def processor_s(client: Hub) -> float:
    """Return the processor time of the child process."""
    fields = Path(f"/proc/{client.worker._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("question", ["snapshot", "header", "download"])
def test_answer_without_end_is_cut(
    question: str, client: Hub, server: loopback.Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = client.snapshot(repository.name, None)
    files = snapshot.selected(ALL)
    sent = list[int]()

    def answer(handler: Any, status: int, body: Any, kind: str, headers: dict[str, str]) -> None:
        if handler.command == "HEAD":
            original(handler, status, body, kind, headers)
            return
        handler.request_log.status = 200
        handler.send_response(200)
        handler.send_header("Connection", "close")  # the body ends with the connection
        handler.end_headers()
        piece = b"[" * (1 << 20)
        num_bytes = 0
        with suppress(OSError):
            while num_bytes < 1 << 30:
                num_bytes += handler.wfile.write(piece)
        sent.append(num_bytes)
        handler.close_connection = True

    original = loopback._Handler.answer
    monkeypatch.setattr(loopback._Handler, "answer", answer)
    questions: dict[str, Callable[[], object]] = {
        "snapshot": lambda: client.snapshot(repository.name, None),
        "header": lambda: client.header(snapshot, "model.safetensors"),
        "download": lambda: client.download(snapshot, files, lambda num_bytes: None),
    }
    status, message = refusal(questions[question])
    assert status in (1, 5)
    assert "Traceback" not in message
    until(lambda: sent)
    assert max(sent) < 100 << 20
    assert "expected an answer of at most" in message or question == "header", message


def test_compressed_answers_are_refused(client: Hub, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a megabyte of the answer is half a gigabyte of memory."""
    accepted = list[str | None]()

    def send_json(handler: Any, record: Any, headers: dict[str, str] | None = None) -> None:
        accepted.append(handler.headers.get("Accept-Encoding"))
        handler.answer(200, gzip.compress(bytes(1 << 24)), "application/json", {"Content-Encoding": "gzip"})

    monkeypatch.setattr(loopback._Handler, "send_json", send_json)
    status, message = refusal(lambda: client.snapshot(repository.name, None))
    assert (status, message.partition(": ")[2]) == (5, "expected an uncompressed answer, got 'gzip'")
    assert accepted == ["identity"]


def test_slow_and_long_bodies_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Body(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                clock[0] += 9.0
                yield b"abc"

    clock = [0.0]
    monkeypatch.setattr("stretto.releases.fetch.time.monotonic", lambda: clock[0])
    with pytest.raises(httpx2.ReadTimeout, match="fewer than 1000 bytes a second"):
        list(_BoundedStream(Body(), 1000))
    assert PATIENCE_S < clock[0] < 2 * PATIENCE_S
    with pytest.raises(ReleaseError, match="expected an answer of at most 5 bytes, got more"):
        list(_BoundedStream(Body(), 5))


def test_redirects_without_end_are_reported(client: Hub, repository: Repository, server: loopback.Hub) -> None:
    address = f"{server.url}/api/models/{repository.name}"
    fault = server.fail(f"GET /api/models/{repository.name}", status=302, headers={"Location": address}, times=1000)
    status, message = refusal(lambda: client.snapshot(repository.name, None))
    fault.times = 0
    assert status in (1, 5)
    assert "Traceback" not in message


def test_header(client: Hub, repository: Repository) -> None:
    dtypes = ("f8", "i8", "u8", "c8", "f4", "i4", "u4", "f2", "i2", "u2", "i1", "u1", "?")
    data = save({dtype: np.zeros((3, 5), dtype) for dtype in dtypes})
    repository.commit({"model.safetensors": data})
    found = client.header(client.snapshot(repository.name, None), "model.safetensors")
    assert found == json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    odd = {name: headed({"a": facts | {"shape": [1], "data_offsets": [0, 9]}}) for name, facts in found.items()}
    repository.commit(odd)
    snapshot = client.snapshot(repository.name, None)
    for name in odd:
        assert "expected the size of" in refusal(partial(client.header, snapshot, name))[1]


@pytest.mark.parametrize(
    ("address", "status"), [("{hub}", 5), ("http://user:sec%20ret@127.0.0.1:1", 5), ("http://user:secret@[::1", 2)]
)
def test_password_in_the_address_is_not_printed(
    address: str,
    status: int,
    server: loopback.Hub,
    repository: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.fail(f"/api/models/{repository.name}", status=418, times=9)
    place = server.url.replace("//", "//user:secret@")
    prepared(monkeypatch, tmp_path, address.format(hub=place))
    with Hub() as client:
        found, message = refusal(lambda: client.snapshot(repository.name, None))
    assert found == status
    assert not [word for word in ("user", "sec") if word in message + hub_address()]


@pytest.mark.parametrize("text", ["", " "])
def test_empty_address_is_that_of_the_hub(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(monkeypatch, tmp_path, text)
    started = Mock()
    monkeypatch.setattr("stretto.releases.hub.JobProcess", started)
    Hub().worker  # noqa: B018 - starts the process
    assert started.call_args.args[1]["HF_ENDPOINT"] == "https://huggingface.co"


@pytest.mark.parametrize("token", ["s\xe9cret", "se\x01cret"])
def test_token_that_is_no_header_is_refused(
    token: str, server: loopback.Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(monkeypatch, tmp_path, server.url, HF_TOKEN=token)
    with Hub() as client:
        status, message = refusal(lambda: client.snapshot(repository.name, None))
    assert status == 6
    assert message.startswith("HF_TOKEN")
    assert "cret" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Linked-ETag", '"../../../found"'),
        ("ETag", 'W/"../../../found"'),
        ("ETag", '"found"'),
        ("X-Repo-Commit", "../../../found"),
    ],
)
def test_answer_that_would_be_a_path_is_refused(
    name: str,
    value: str,
    client: Hub,
    repository: Repository,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = loopback._Handler.answer

    def answer(handler: Any, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        original(handler, status, body, kind, headers | ({name: value} if "X-Repo-Commit" in headers else {}))

    repository.commit({"config.json": b"{}"})
    monkeypatch.setattr(loopback._Handler, "answer", answer)
    status, message = refusal(lambda: fetched(client, repository))
    assert status == 5
    assert f"{name.removeprefix('X-Linked-')}: expected a hash, got " in message
    assert not list(home.parent.rglob("found*"))


@pytest.mark.parametrize("address", ["not a url", "ftp://host", "http://[::1", "http://127.0.0.1:99999", "http://:80"])
def test_endpoint_that_is_no_address_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(monkeypatch, tmp_path, address)
    with Hub() as client:
        status, message = refusal(lambda: client.snapshot("acme/voice", None))
    assert status == 2
    assert message == f"HF_ENDPOINT: expected an address such as https://huggingface.co, got {address!r}"


def test_fault_during_recognition_is_not_taken_for_another_release(
    client: Hub, server: loopback.Hub, repository: Repository
) -> None:
    names = ("config.yaml", "model.safetensors", "tokenizer.json", "embeddings/a.safetensors")
    repository.commit(dict.fromkeys(names, b"{}"))
    server.fail(f"/{repository.name}/resolve/.*/config.yaml", status=418, times=9)
    listing = RemoteListing(client, client.snapshot(repository.name, None))
    status, message = refusal(lambda: detect(listing, repository.name))
    assert status == 5
    assert "418" in message


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_cache_that_is_a_file_is_reported(
    variable: str, server: loopback.Hub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    prepared(monkeypatch, tmp_path / "home", server.url, **{variable: str(tmp_path / "file")})
    with Hub() as client:
        status, message = refusal(lambda: fetched(client, repository))
    assert status == 1
    assert str(tmp_path / "file") in message
    assert "Traceback" not in message
