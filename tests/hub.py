"""Loopback server with the HTTP interface of the Hugging Face hub, for tests of downloads.

    with Hub() as hub:
        repository = hub.add("acme/voice", folder)         # first commit, branch `main`
        repository.commit(other_folder)                    # `main` moves; the first commit stays available
        fault = hub.fail("model.safetensors", status=503)  # for the next request whose "METHOD /path" matches
        run(env=hub.environment(home))

Large files and weights are LFS files: `resolve` redirects to a second port, as the real hub redirects to its storage
host, so that a test can check that the token is not sent there. `hub.requests` records all requests.
"""

import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

CHUNK_BYTES = 1 << 16
LFS_BYTES = 1 << 20  # larger files are LFS files, as are files with these suffixes
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".tgz", ".model", ".wav", ".nemo")
PAGE_ENTRIES = 1000
POINTER_BYTES = 134
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Blob:
    """A file of a commit. `name` is its path in the repository."""

    name: str
    data: bytes | memoryview

    @cached_property
    def git(self) -> str:
        """SHA-1 of the file as a git object."""
        digest = hashlib.sha1(f"blob {self.size}\0".encode())
        digest.update(self.data)
        return digest.hexdigest()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of an LFS file; the empty string for other files."""
        is_lfs = self.size > LFS_BYTES or self.name.endswith(LFS_SUFFIXES)
        return hashlib.sha256(self.data).hexdigest() if is_lfs else ""

    @property
    def size(self) -> int:
        return len(self.data)

    def lfs(self, key: str) -> dict[str, Any]:
        """Return the description of an LFS file with its hash under `key`; empty for other files."""
        pointer = {key: self.sha256, "size": self.size, "pointerSize": POINTER_BYTES}
        return {"lfs": pointer} if self.sha256 else {}


@dataclass
class Repository:
    """A model repository.

    Attributes:
        name: OWNER/NAME.
        gated: False, "auto" or "manual".
        private: True to hide the repository from requests without a grant.
        card: Metadata of the model card.
        commits: Files by path, by commit.
        branches: Commits by branch.
        has_xet: True to announce the hub's newer storage protocol, which this server does not have.
        extra_names: Further names that the listing contains, for tests of names that are no valid paths.
    """

    name: str
    gated: str | bool = False
    private: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    has_xet: bool = False
    extra_names: tuple[str, ...] = ()
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Path | Mapping[str, bytes | memoryview], branch: str = "main") -> str:
        """Add the files of a folder, or these contents by path, as a commit of the branch. Return the commit."""
        if isinstance(files, Path):
            files = {name: path.read_bytes() for name, path in _files(files).items()}
        blobs = {name: Blob(name, data) for name, data in files.items()}
        text = self.branches.get(branch, "") + "".join(f"{name}\0{blob.git}\n" for name, blob in blobs.items())
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = blobs, sha
        return sha

    def pin(self, sha: str) -> None:
        """Give the newest commit of `main` this id, for tests of records with a fixed revision."""
        self.commits[sha] = self.commits[self.branches["main"]]
        self.branches["main"] = sha

    def find(self, revision: str) -> str | None:
        """Return the commit of a branch or an id, or None."""
        revision = revision.removeprefix("refs/heads/")
        return self.branches.get(revision) or (revision if revision in self.commits else None)


def _files(folder: Path) -> dict[str, Path]:
    """Return the files in a folder by their path in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass
class Fault:
    """A fault of the server. It applies to requests whose "METHOD /path" contains the regular expression `pattern`.

    Attributes:
        pattern: Regular expression.
        times: Number of requests that still fail.
        status: Status of the answer; 0 for a faulty transfer.
        headers: Further headers of that answer.
        drop_after: Number of bytes of the body after which the connection is closed; None for no limit.
        resets: True to close it with a TCP reset.
        is_wrong: True to invert a byte in the middle of the body.
        short: Number of bytes that are missing at the end, with a matching Content-Length.
        ignores_range: True to answer a request for a range with the whole file.
        held: Event to wait for before the answer, or, with `drop_after`, before the rest.
    """

    pattern: str
    times: float = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    resets: bool = False
    is_wrong: bool = False
    short: int = 0
    ignores_range: bool = False
    held: threading.Event | None = None


@dataclass
class Request:
    """A recorded request. `storage` is True for requests to the storage host."""

    method: str
    path: str
    storage: bool
    range: str | None
    token: str | None
    status: int = 0
    num_bytes: int = 0


class Hub:
    """The server. `grants` maps each valid token to the gated or private repositories that it opens."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.grants: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        self._servers = [_Server(self, is_storage) for is_storage in (False, True)]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def add(self, name: str, files: Path | Mapping[str, bytes | memoryview], **settings: Any) -> Repository:
        """Add a repository with one commit; `settings` are attributes of `Repository`."""
        self.repositories[name] = repository = Repository(name, **settings)
        repository.commit(files)
        return repository

    def fail(self, pattern: str, **settings: Any) -> Fault:
        """Add a fault; `settings` are attributes of `Fault`."""
        fault = Fault(pattern, **settings)
        with self._lock:
            self.faults.append(fault)
        return fault

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Return environment variables for a client whose cache is `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | own | {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "NO_PROXY": "127.0.0.1"} | more

    def fault_for(self, text: str) -> Fault:
        """Return the first fault that applies to a request, counted as used; one without effect if there is none."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, text):
                    fault.times -= 1
                    return fault
        return Fault("")

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for fault in self.faults:
            if fault.held is not None:
                fault.held.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, is_storage: bool):
        self.hub, self.is_storage = hub, is_storage
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors other than connections that a client has closed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """An answer with an error: its status, and the hub's code and message."""

    def __init__(self, status: int, code: str = "", message: str = "refused"):
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *words: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer a request."""
        self.hub = self.server.hub
        parts = urlsplit(self.path)
        self.place, self.query = unquote(parts.path), {key: words[0] for key, words in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.request_log = Request(self.command, self.place, self.server.is_storage, self.headers.get("Range"), token)
        self.hub.requests.append(self.request_log)
        self.fault = self.hub.fault_for(f"{self.command} {self.place}")
        if self.fault.held is not None and self.fault.drop_after is None:
            self.fault.held.wait()
        try:
            if self.fault.status:
                raise _Refused(self.fault.status)
            self.route()
        except _Refused as error:
            self.answer(error.status, b"{}", "application/json", error.headers | self.fault.headers)

    do_HEAD = do_POST = do_GET

    def route(self) -> None:
        if self.server.is_storage:
            return self.send_file(self.stored_blob(), {})
        if self.place == "/api/whoami-v2":
            if self.token() is None:
                raise _Refused(401)
            return self.send_json({"type": "user", "name": "tester"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([^/]+))?(?:/([^/]+))?(?:/(.+))?", self.place):
            name, kind, revision, inside = found.groups()
            return self.answer_about(self.repository(name), kind or "revision", revision or "main", inside or "")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.place):
            return self.resolve(self.repository(found[1]), found[2], found[3])
        raise _Refused(404)

    def stored_blob(self) -> Blob:
        blobs = (
            blob
            for each in self.hub.repositories.values()
            for files in each.commits.values()
            for blob in files.values()
        )
        for blob in blobs:
            if blob.sha256 and self.place.endswith(f"/{blob.sha256}"):
                return blob
        raise _Refused(404)

    def token(self) -> str | None:
        token = self.request_log.token
        if token is not None and token not in self.hub.grants:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return token

    def has_grant(self, name: str) -> bool:
        token = self.token()
        return token is not None and name in self.hub.grants[token]

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.has_grant(name)):
            # like the hub, hide from anonymous clients whether the repository exists
            raise _Refused(401 if self.token() is None else 404, "RepoNotFound", "Repository not found")
        return found

    def check_gate(self, repository: Repository) -> None:
        if repository.gated and not self.has_grant(repository.name):
            message = f"Access to model {repository.name} is restricted."
            raise _Refused(401 if self.token() is None else 403, "GatedRepo", message)

    def commit(self, repository: Repository, revision: str) -> str:
        sha = repository.find(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def answer_about(self, repository: Repository, kind: str, revision: str, inside: str) -> None:
        if kind == "auth-check":
            self.check_gate(repository)
            return self.send_json({})
        if kind == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                for name, sha in repository.branches.items()
            ]
            return self.send_json({"branches": branches, "tags": [], "converts": []})
        sha = self.commit(repository, revision)
        files = repository.commits[sha]
        if kind == "revision":
            return self.send_json(self.information(repository, sha))
        if kind == "paths-info":
            wanted = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
            return self.send_json([_described(files[name]) for name in wanted if name in files])
        if kind == "tree":
            return self.send_tree([blob for name, blob in files.items() if name.startswith(inside)])
        raise _Refused(404)

    def information(self, repository: Repository, sha: str) -> dict[str, Any]:
        has_blobs = self.query.get("blobs", "").lower() in ("true", "1")
        files = repository.commits[sha].values()
        siblings = [
            {"rfilename": each.name}
            | ({"size": each.size, "blobId": each.git} | each.lfs("sha256") if has_blobs else {})
            for each in files
        ]
        return {
            "_id": hashlib.sha1(repository.name.encode()).hexdigest()[:24],
            "id": repository.name,
            "modelId": repository.name,
            "author": repository.name.split("/")[0],
            "sha": sha,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": repository.private,
            "gated": repository.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [f"license:{repository.card['license']}"] if "license" in repository.card else [],
            "cardData": repository.card,
            "siblings": siblings + [{"rfilename": name} for name in repository.extra_names],
            "usedStorage": sum(each.size for each in files),
        }

    def send_tree(self, blobs: Iterable[Blob]) -> None:
        """Send one page of all files and folders, recursively."""
        files = [_described(each) for each in blobs]
        parents = {parent.as_posix() for each in files for parent in Path(each["path"]).parents} - {"."}
        folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": each} for each in sorted(parents)]
        entries, start = folders + files, int(self.query.get("cursor", "0"))
        end = start + PAGE_ENTRIES
        following = f'<{self.hub.url}{quote(self.place)}?recursive=true&cursor={end}>; rel="next"'
        self.send_json(entries[start:end], {"Link": following} if end < len(entries) else {})

    def resolve(self, repository: Repository, revision: str, name: str) -> None:
        self.check_gate(repository)
        sha = self.commit(repository, revision)
        blob = repository.commits[sha].get(name)
        if blob is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": sha}
        if not blob.sha256:
            return self.send_file(blob, headers)
        headers |= {"X-Linked-Size": str(blob.size), "X-Linked-ETag": f'"{blob.sha256}"', "ETag": f'"{blob.git}"'}
        headers["Location"] = f"{self.hub.storage}/{repository.name}/{quote(name)}/{blob.sha256}"
        if repository.has_xet:
            route = f"{self.hub.url}/api/models/{repository.name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": blob.sha256, "Link": f'<{route}>; rel="xet-auth"'}
        return self.answer(302, b"", "text/plain", headers)

    def send_file(self, blob: Blob, headers: dict[str, str]) -> None:
        """Send a file, or the requested range of it, with the transfer faults."""
        data, fault = memoryview(blob.data)[: blob.size - self.fault.short], self.fault
        start, end, status = 0, len(data), 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.request_log.range or "")
        headers = headers | {"ETag": f'"{blob.sha256 or blob.git}"', "Accept-Ranges": "bytes"}
        if found and not fault.ignores_range:
            start, end, status = int(found[1]), min(end, int(found[2]) + 1 if found[2] else end), 206
            if start >= end:
                return self.answer(416, b"", "text/plain", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        if fault.is_wrong:
            middle = len(data) // 2
            data = memoryview(b"".join([data[:middle], bytes([data[middle] ^ 0xFF]), data[middle + 1 :]]))
        return self.answer(status, data[start:end], "application/octet-stream", headers)

    def send_json(self, record: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(record).encode(), "application/json", headers or {})

    def answer(self, status: int, body: bytes | memoryview, kind: str, headers: dict[str, str]) -> None:
        self.request_log.status = status
        self.send_response(status)
        for key, value in (headers | {"Content-Type": kind, "Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = len(body) if self.fault.drop_after is None else self.fault.drop_after
        for start in range(0, min(limit, len(body)), CHUNK_BYTES):
            piece = body[start : min(start + CHUNK_BYTES, limit)]
            self.wfile.write(piece)
            self.request_log.num_bytes = min(start + CHUNK_BYTES, limit, len(body))
        if limit < len(body):
            self.drop()

    def drop(self) -> None:
        """Close the connection in the middle of a body."""
        self.wfile.flush()
        if self.fault.held is not None:
            self.fault.held.wait()
        if self.fault.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()
        self.close_connection = True


def _described(blob: Blob) -> dict[str, Any]:
    """Return a file's entry in the tree."""
    return {"type": "file", "oid": blob.git, "size": blob.size, "path": blob.name} | blob.lfs("oid")
