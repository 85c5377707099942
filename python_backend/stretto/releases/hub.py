"""Client of the model hub: listings of repositories, and downloads by a child process."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from stretto.errors import shown
from stretto.family.recognition import MAX_TEXT_BYTES, Listing
from stretto.releases.catalogue import REVISION, SHA256, RepositoryFiles
from stretto.releases.jobs import JobProcess, Report
from stretto.releases.messages import BadArgument, ReleaseError, Unavailable, line
from stretto.releases.target import MAX_FILES

MAX_RELEASE_BYTES = 200_000_000_000
MAX_PART_BYTES = 255  # maximum length of a file name
ENDPOINT = "https://huggingface.co"
SECRET = re.compile(r"//[^/\s@]*@")  # a user's name and password in an address
PATH = re.compile(r"[^/\\\x00:]+(/[^/\\\x00:]+)*")
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "0"}


@dataclass(frozen=True)
class Snapshot:
    """A commit of a repository, as the hub describes it.

    Attributes:
        repository: OWNER/NAME.
        commit: 40 hexadecimal digits; empty for a folder.
        licence: Licence identifier of the model card.
        files: For each path its `size` in bytes, its `sha256` or None, and its git object id `oid`.
    """

    repository: str
    commit: str
    licence: str | None
    files: Mapping[str, Mapping[str, Any]]

    def selected(self, source: RepositoryFiles) -> dict[str, dict[str, Any]]:
        """Return the files of a source; raise Unavailable if a pattern matches none, or a name or size is invalid."""
        names = {name for name in self.files if _matches(name, source.files) and not _matches(name, source.exclude)}
        for pattern in source.files:
            if not any(fnmatchcase(name, pattern) for name in self.files):
                raise Unavailable(
                    f"{self.repository} @ {self.commit[:7]}: no file {pattern}, which the release must have"
                )
        check_names(self.repository, names)
        for name in sorted(names) if self.commit else ():  # the files of a folder have no hashes
            _check_facts(self.repository, name, self.files[name])
        if (size := sum(self.files[name]["size"] for name in names)) > MAX_RELEASE_BYTES:
            limit = MAX_RELEASE_BYTES / 1e9
            raise Unavailable(f"{self.repository}: expected at most {limit:.0f} GB, got {size / 1e9:.0f} GB")
        return {name: dict(self.files[name]) for name in sorted(names)}


class Hub:
    """Client of the hub. Its child process is started by the first request.

    Args:
        token: Access token; None for that of the environment.
    """

    def __init__(self, token: str | None = None) -> None:
        self._environment = QUIET | ({} if token is None else {"HF_TOKEN": token})
        self._worker: JobProcess | None = None

    @property
    def worker(self) -> JobProcess:
        if self._worker is None:
            check_endpoint()
            # The client library would take an empty variable for an address.
            self._worker = JobProcess("stretto.releases.fetch", self._environment | {"HF_ENDPOINT": endpoint()})
        return self._worker

    def _call(self, job: str, report: Report = lambda num_bytes: None, **values: Any) -> Any:
        """Run a job in the child process (`JobProcess.call`), and remove the hub's password from its error messages."""
        try:
            return self.worker.call(job, report, **values)
        except ReleaseError as error:
            error.args = (SECRET.sub("//", str(error)),)
            raise

    def text(self, snapshot: Snapshot, name: str, max_bytes: int) -> str | None:
        """Return the text of a file; None if it is not UTF-8 text of at most `max_bytes`."""
        check_names(snapshot.repository, {name})
        text: str | None = self._call(
            "text", repository=snapshot.repository, commit=snapshot.commit, name=name, max_bytes=max_bytes
        )
        return text

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """Return the commit of a revision, by default the newest; raise ReleaseError if the hub refuses."""
        answer = self._call("snapshot", repository=repository, revision=revision or "main")
        if not isinstance(answer["commit"], str) or not REVISION.fullmatch(answer["commit"]):
            raise Unavailable(
                f"{repository}: expected a commit of 40 hexadecimal digits, got {shown(answer['commit'])}"
            )
        if len(answer["files"]) > MAX_FILES:
            raise Unavailable(f"{repository}: expected at most {MAX_FILES} files, got {len(answer['files'])}")
        return Snapshot(repository, **answer)

    def download(self, snapshot: Snapshot, files: Mapping[str, Any], report: Report) -> dict[str, dict[str, Any]]:
        """Download files of a repository and check their hashes; return size, SHA-256 and path in the cache by path."""
        downloaded: dict[str, dict[str, Any]] = self._call(
            "download", report, repository=snapshot.repository, commit=snapshot.commit, files=files
        )
        return downloaded

    def header(self, snapshot: Snapshot, name: str) -> dict[str, Any]:
        """Return `dtype`, `shape` and `data_offsets` of each tensor in a safetensors file, from its header."""
        check_names(snapshot.repository, {name})
        size = snapshot.files[name]["size"]
        tensors: dict[str, Any] = self._call(
            "header", repository=snapshot.repository, commit=snapshot.commit, name=name, size=size
        )
        return tensors

    def remove(self, files: Iterable[tuple[str, str, str]]) -> int:
        """Remove files, each a repository, a commit and a path, from the cache; return the number of freed bytes."""
        names = defaultdict[tuple[str, str], list[str]](list)
        for repository, commit, name in sorted(files):
            names[repository, commit].append(name)
        freed = 0
        for (repository, commit), paths in names.items():
            freed += self._call("remove", repository=repository, commit=commit, names=paths)
        return freed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.close()


class RemoteListing(Listing):
    """Listing of a repository's files, whose texts are downloaded when they are read."""

    def __init__(self, hub: Hub, snapshot: Snapshot) -> None:
        super().__init__(frozenset(snapshot.files), {name: facts["size"] for name, facts in snapshot.files.items()})
        self._hub = hub
        self._snapshot = snapshot

    def text(self, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str | None:
        if name not in self.names:
            return None
        repository = self._snapshot.repository
        _check_facts(repository, name, self._snapshot.files[name])
        if self.sizes[name] > max_bytes:
            return None
        return self._hub.text(self._snapshot, name, max_bytes)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_names(repository: str, names: set[str]) -> None:
    """Raise Unavailable if a file's name is not a valid path on every system, or two names differ only in case."""
    folded: dict[str, str] = {}
    for name in sorted(names):
        parts = name.split("/")
        is_long = any(len(component.encode(errors="replace")) > MAX_PART_BYTES for component in parts)
        if not PATH.fullmatch(name) or {".", ".."} & {*parts} or is_long:
            raise Unavailable(f"{repository}: the file name {name[:80]!r} cannot be used")
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise Unavailable(f"{repository}: the file names {other!r} and {name!r} differ only in case")


def _check_facts(repository: str, name: str, facts: Mapping[str, Any]) -> None:
    """Raise Unavailable if the hub does not state a file's size and hash."""
    size = facts["size"]
    sha256 = facts["sha256"]
    oid = facts["oid"]
    if type(size) is not int or size < 0:
        raise Unavailable(f"{repository}: {name}: expected a size in bytes, got {shown(size)}")
    if not (REVISION.fullmatch(str(oid)) if sha256 is None else SHA256.fullmatch(str(sha256))):
        raise Unavailable(f"{repository}: {name}: expected a hash, got {shown(oid if sha256 is None else sha256)}")


def endpoint() -> str:
    """Return the address of the hub, which may contain a password."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or ENDPOINT


def address() -> str:
    """Return the address of the hub without user name and password, for messages."""
    return re.sub(r"^([^/]*//)?.*@", r"\1", endpoint())


def is_offline() -> bool:
    """Return True if the environment forbids requests to the hub."""
    named = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return named.upper() in ("1", "ON", "YES", "TRUE")


def check_endpoint() -> None:
    """Print a warning if the hub is another machine without encryption; raise BadArgument if its address is invalid."""
    try:
        url = urlsplit(endpoint())
        host = url.hostname
        port = url.port
    except ValueError:
        host = port = None
    if not host or port == 0 or url.scheme not in ("http", "https"):
        raise BadArgument(f"HF_ENDPOINT: expected an address such as {ENDPOINT}, got {shown(address())}")
    try:
        is_local = ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if url.scheme == "http" and not is_local:
        line(
            "warning", f"HF_ENDPOINT: {host} is reached without encryption; files and the token can be read and changed"
        )


def read_token(path: Path) -> str:
    """Return the token in a file; raise BadArgument if there is none."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BadArgument(f"--token-file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadArgument(f"--token-file: {path}: expected one token") from error
    if not token or not token.isascii() or not token.isprintable():
        raise BadArgument(f"--token-file: {path}: expected one token")
    return token
