"""Requests to the hub and downloads from it, in a child process (`jobs`).

Files are stored in the hub's own cache, which other programs share, and compared with the hashes that the hub lists.
"""

import fcntl
import hashlib
import ipaddress
import math
import re
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    get_token,
    hf_hub_download,
    hf_hub_url,
    scan_cache_dir,
    set_client_factory,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.file_download import build_hf_headers, hf_raise_for_status
from tqdm.auto import tqdm

from stretto.errors import CheckpointError, shown
from stretto.releases.jobs import Report, serve
from stretto.releases.messages import NotAllowed, ReleaseError, Unavailable, disk_error
from stretto.untrusted_files import UNPARSABLE, parsed_json, read_text, released_file

DELAYS_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # delays before further attempts
MAX_DELAY_S = 60.0  # maximum delay that the hub may request
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
NUM_DOWNLOADS = 4  # files at once
PIECE = 1 << 20
MAX_ANSWER_BYTES = 32 << 20  # 10,000 files of a repository have 5 MB
# minimum speed of an answer that takes longer than PATIENCE_S
MIN_BYTES_PER_S = 1000
PATIENCE_S = 60.0
WORK_S = 120  # processor time for a request to the hub
QUESTION_S = 1800  # time for a request to the hub, with all attempts
LENGTH_BYTES = 8  # length field before a safetensors header
FIRST_BYTES = 100_000  # hold most headers
MAX_HEADER_BYTES = 25_000_000  # as in the client library
MAX_DIMENSIONS = 8  # maximum for a tensor; published tensors have at most 5
# Bytes of a number in a safetensors file.
WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
WIDTHS |= dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1)
MAX_LICENCE_CHARS = 100
# keys of a downloaded file
BYTES = "bytes"
SHA256 = "sha256"
PLACE = "place"
PART = ".incomplete"
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # hash of a commit, a git object or an LFS file
T = TypeVar("T")


def snapshot(report: Report, repository: str, revision: str) -> dict[str, Any]:
    """Return the commit of a revision of a repository; raise ReleaseError if it does not exist or access is refused.

    Returns:
        `commit`; `licence` of the model card, or None; and `files`: for each path its `size`, its `sha256` or None,
        and its git object id `oid`.
    """
    with bounded_work(), explained(repository, revision):
        _check_token()
        api = HfApi()
        info = attempted(lambda: api.model_info(repository, revision=revision, files_metadata=True))
        if info.gated:
            attempted(lambda: api.auth_check(repository))
        stated = None if info.card_data is None else info.card_data.get("license")
        return {
            "commit": info.sha,
            "licence": stated[:MAX_LICENCE_CHARS] if isinstance(stated, str) else None,
            "files": {
                file.rfilename: {
                    "size": file.size,
                    "sha256": None if file.lfs is None else file.lfs.sha256,
                    "oid": file.blob_id,
                }
                for file in info.siblings or []
            },
        }


def _check_token() -> None:
    """Raise NotAllowed, without the token in the message, if the token cannot be sent in a header."""
    token = get_token() or ""
    if not token.isascii() or not token.isprintable():
        raise NotAllowed("HF_TOKEN, or the token of hf auth login: expected printable ASCII characters only")


def _check_answer(response: httpx2.Response) -> None:
    """Raise Unavailable if the answer has something else instead of a hash, which the client library uses in a path."""
    commit = response.headers.get("X-Repo-Commit")
    if response.request.method != "HEAD" or commit is None:
        return
    tag = (response.headers.get("X-Linked-ETag") or response.headers.get("ETag") or "").removeprefix("W/").strip('"')
    for name, value in (("X-Repo-Commit", commit), ("ETag", tag)):
        if value and not HASH.fullmatch(value):
            raise Unavailable(f"{response.request.url.path}: {name}: expected a hash, got {shown(value)}")


class _BoundedStream(httpx2.SyncByteStream):
    """Body of an answer that raises an error if it is too long or too slow."""

    def __init__(self, stream: httpx2.SyncByteStream, max_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes

    def __iter__(self) -> Iterator[bytes]:
        began_s = time.monotonic()
        num_bytes = 0
        for piece in self._stream:
            num_bytes += len(piece)
            if num_bytes > self._max_bytes:
                raise Unavailable(f"expected an answer of at most {self._max_bytes} bytes, got more")
            took_s = time.monotonic() - began_s
            if took_s > PATIENCE_S and num_bytes < MIN_BYTES_PER_S * took_s:
                raise httpx2.ReadTimeout(f"fewer than {MIN_BYTES_PER_S} bytes a second")
            yield piece

    def close(self) -> None:
        self._stream.close()


LIMIT = threading.local()  # `max_bytes`: size of the file that this thread downloads


def _bound_answer(response: httpx2.Response) -> None:
    """Limit the body of an answer to the size of the file that is downloaded, or to MAX_ANSWER_BYTES.

    If the answer is compressed, so that its size is unknown, raise Unavailable.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("identity", ""):
        raise Unavailable(f"{response.request.url.path}: expected an uncompressed answer, got {shown(encoding)}")
    max_bytes = max(MAX_ANSWER_BYTES, getattr(LIMIT, "max_bytes", 0))
    assert isinstance(response.stream, httpx2.SyncByteStream)
    response.stream = _BoundedStream(response.stream, max_bytes)


def _refuse_compression(request: httpx2.Request) -> None:
    request.headers["Accept-Encoding"] = "identity"


def _is_public(host: str) -> bool:
    """Return True if no address of a host belongs to this machine or to a private network."""
    try:
        addresses = socket.getaddrinfo(host, None)
    except OSError:
        return True  # a proxy may know the name
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in addresses)


def _check_destination(request: httpx2.Request) -> None:
    """Raise Unavailable if a hub on the internet redirects to a private network, or to an address without encryption.

    Otherwise the hub could make this machine send requests to services that only its own network can reach.
    """
    hub = urlsplit(constants.ENDPOINT)
    host = request.url.host
    if hub.hostname is None or host == hub.hostname or not _is_public(hub.hostname):
        return
    if hub.scheme == "https" and request.url.scheme != "https":
        raise Unavailable(f"redirect: expected an address that begins with https://, got {shown(str(request.url))}")
    if not _is_public(host):
        raise Unavailable(f"redirect: expected an address on the internet, got {shown(str(request.url))}")


def _check_answers() -> None:
    """Make the client library check the destination of each request, and check and bound each answer."""
    usual = get_session()
    requests: list[Callable[..., Any]] = [*usual.event_hooks["request"], _check_destination, _refuse_compression]
    hooks: dict[str, list[Callable[..., Any]]] = {"request": requests, "response": [_check_answer, _bound_answer]}
    set_client_factory(
        lambda: httpx2.Client(event_hooks=hooks, follow_redirects=usual.follow_redirects, timeout=usual.timeout)
    )


@contextmanager
def bounded_work() -> Iterator[None]:
    """End this process if the `with` block takes more than QUESTION_S, or WORK_S of processor time."""
    soft_s, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = math.ceil(used.ru_utime + used.ru_stime) + WORK_S
    resource.setrlimit(
        resource.RLIMIT_CPU, (limit_s if hard_s == resource.RLIM_INFINITY else min(limit_s, hard_s), hard_s)
    )
    signal.alarm(QUESTION_S)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_CPU, (soft_s, hard_s))


def text(report: Report, repository: str, commit: str, name: str, max_bytes: int) -> str | None:
    """Return the text of a file; None if it is not UTF-8 text of at most `max_bytes` bytes."""
    with bounded_work(), explained(repository, commit, name):
        path = attempted(lambda: hf_hub_download(repository, name, revision=commit, tqdm_class=_Silent))
    try:
        return read_text(_released(Path(path), name), max_bytes)
    except CheckpointError:
        return None


def header(report: Report, repository: str, commit: str, name: str, size: int) -> dict[str, Any]:
    """Return `dtype`, `shape` and `data_offsets` of each tensor in a safetensors file of this size, from its header."""
    with bounded_work(), explained(repository, commit, name):
        data = attempted(lambda: _header_bytes(repository, commit, name))
        record = parsed_json(data.decode(), name)
        return {tensor: _tensor(tensor, facts, size) for tensor, facts in record.items() if tensor != "__metadata__"}


def _header_bytes(repository: str, commit: str, name: str) -> bytes:
    url = hf_hub_url(repository, name, revision=commit)
    data = _beginning(url, FIRST_BYTES)
    num_bytes = int.from_bytes(data[:LENGTH_BYTES], "little")
    if not 0 < num_bytes <= MAX_HEADER_BYTES:
        raise ValueError(f"expected a header of 1 to {MAX_HEADER_BYTES} bytes, got {num_bytes}")
    if num_bytes > len(data) - LENGTH_BYTES:
        data = _beginning(url, LENGTH_BYTES + num_bytes)
    content = data[LENGTH_BYTES : LENGTH_BYTES + num_bytes]
    if len(content) < num_bytes:
        raise ValueError(f"expected a header of {num_bytes} bytes, got {len(content)}")
    return content


def _beginning(url: str, num_bytes: int) -> bytes:
    """Return the first `num_bytes` bytes of a file, even if the hub ignores the range and sends more."""
    headers = build_hf_headers() | {"range": f"bytes=0-{num_bytes - 1}"}
    data = bytearray()
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout_s) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        for piece in response.iter_bytes():
            data += piece
            if len(data) >= num_bytes:
                break
    return bytes(data[:num_bytes])


def _tensor(name: str, facts: Any, file_bytes: int) -> dict[str, Any]:
    """Return the description of a tensor; raise ValueError if its size in the file does not fit its shape."""
    dtype = facts["dtype"]
    shape = facts["shape"]
    offsets = facts["data_offsets"]
    where = shown(name)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{where}: shape: expected a list of at most {MAX_DIMENSIONS} numbers, got {shown(shape)}")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape):
        raise ValueError(f"{where}: shape: expected numbers from 0, got {shown(shape)}")
    limits = range(file_bytes + 1)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n in limits for n in offsets):
        raise ValueError(f"{where}: expected two data_offsets of at most {file_bytes}, got {shown(offsets)}")
    begin, end = offsets
    if dtype in WIDTHS and math.prod(shape) * WIDTHS[dtype] != end - begin:
        raise ValueError(f"{where}: data_offsets: expected the size of {dtype} {shown(shape)}, got {shown(offsets)}")
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def download(report: Report, repository: str, commit: str, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Download files, as from `snapshot`, and check their hashes.

    `report` is called with the number of bytes of each downloaded part. If a file cannot be downloaded, or has a wrong
    hash twice, raise ReleaseError.

    Returns:
        For each path its size in bytes, its SHA-256 and its path in the cache.
    """
    remove_parts(repository)
    with ThreadPoolExecutor(NUM_DOWNLOADS) as pool:
        jobs = {name: pool.submit(_file, report, repository, commit, name, facts) for name, facts in files.items()}
        wait(jobs.values(), return_when=FIRST_EXCEPTION)
        for job in jobs.values():
            job.cancel()  # after an error, the parent ends this process without waiting for transfers
            if job.done() and not job.cancelled() and (error := job.exception()) is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                raise error
        return {name: job.result() for name, job in jobs.items()}


def _file(report: Report, repository: str, commit: str, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Download a file, twice if its hash is wrong."""
    got = ""
    LIMIT.max_bytes = facts["size"]
    for _ in range(2):
        with explained(repository, commit, name):
            path = _released(Path(attempted(lambda: _downloaded(report, repository, commit, name))), name)
        sha256, oid, size = hashes(path)
        expected, got = (facts["sha256"], sha256) if facts["sha256"] else (facts["oid"], oid)
        if got == expected:
            return {BYTES: size, SHA256: sha256, PLACE: str(path)}
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    raise ReleaseError(f"{name}: expected the hash {expected}, got {got} twice")


def _released(path: Path, name: str) -> Path:
    """Return the path of a file in the cache; raise CheckpointError if it is a link out of the cache."""
    return released_file(path.parents[name.count("/")], name)


def _downloaded(report: Report, repository: str, commit: str, name: str) -> str:
    """Download a file and return its path in the cache; if the hub's newer protocol fails, use the older one."""

    class Bar(_Silent):
        def update(self, n: float | None = 1) -> None:
            report(int(n or 0))

    try:
        return hf_hub_download(repository, name, revision=commit, tqdm_class=Bar)
    except (XetDownloadError, HfHubHTTPError, RuntimeError) as error:
        if constants.HF_HUB_DISABLE_XET or not (isinstance(error, XetDownloadError) or "xet" in str(error).lower()):
            raise
        constants.HF_HUB_DISABLE_XET = True
        return hf_hub_download(repository, name, revision=commit, tqdm_class=Bar)


class _Silent(tqdm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"disable": True})


def hashes(path: Path) -> tuple[str, str, int]:
    """Return the SHA-256 of a file, its id as a git object, and its size in bytes."""
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            sha256.update(piece)
            git.update(piece)
    return sha256.hexdigest(), git.hexdigest(), size


def remove_parts(repository: str) -> None:
    """Remove partial files of processes that have ended, which the client library never continues."""
    cache = Path(constants.HF_HUB_CACHE)
    folder = f"models--{repository.replace('/', '--')}"
    for partial_file in (cache / folder / "blobs").glob(f"*{PART}"):
        lock = cache / ".locks" / folder / f"{partial_file.name.partition('.')[0]}.lock"
        try:
            with lock.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the client library holds this lock during a download
                partial_file.unlink(missing_ok=True)
        except OSError:
            continue


def attempted(call: Callable[[], T]) -> T:
    """Call a function and return its result; repeat the call after a temporary error of the hub or the connection."""
    for delay_s in DELAYS_S:
        try:
            return call()
        except (httpx2.HTTPError, EntryNotFoundError, OSError) as error:
            wait_s = retry_s(error, delay_s)
            if wait_s is None:
                raise
            time.sleep(wait_s)
    return call()


def retry_s(error: Exception, delay_s: float) -> float | None:
    """Return the time to wait before the next attempt, by default `delay_s`; None if the error is permanent.

    The error of the hub or the connection may be `error` itself or its cause.
    """
    cause = _cause(error)
    if isinstance(cause, HfHubHTTPError):
        if cause.response.status_code not in TEMPORARY:
            return None
        asked = cause.response.headers.get("Retry-After", "")
        return min(float(asked), MAX_DELAY_S) if asked.isdecimal() else delay_s
    if isinstance(cause, httpx2.ConnectError | httpx2.UnsupportedProtocol):
        return None
    is_short = type(cause) is OSError and cause.errno is None  # fewer bytes than announced
    return delay_s if is_short or isinstance(cause, httpx2.TransportError) else None


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, httpx2.HTTPError) or error.__cause__ is None:
        return error
    return _cause(error.__cause__)


@contextmanager
def explained(repository: str, revision: str, name: str | None = None) -> Iterator[None]:
    """Replace errors of the client library, for a request about a repository or its file `name`, by a ReleaseError."""
    try:
        yield
    except ReleaseError:
        raise
    except (
        httpx2.HTTPError,
        EntryNotFoundError,
        XetDownloadError,
        CheckpointError,
        OSError,
        *UNPARSABLE,
    ) as error:
        raise _explained(_cause(error), repository, revision, name) from error


def _explained(error: BaseException, repository: str, revision: str, name: str | None) -> ReleaseError:
    token = get_token()
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    short = revision[:7] if len(revision) == 40 else revision
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        if status == 403:
            return NotAllowed(f"{repository}: your account has no access yet: open {page}")
        return NotAllowed(f"{repository} needs your consent: open {page}, then run hf auth login")
    if status == 401 and token is not None:
        return NotAllowed("the hub rejects the token in HF_TOKEN, --token-file or of hf auth login")
    if isinstance(error, RevisionNotFoundError):
        return Unavailable(f"{repository}: no revision {revision}")
    if isinstance(error, RepositoryNotFoundError):
        return Unavailable(f"{repository}: no such public repository; a private one needs HF_TOKEN")
    if isinstance(error, EntryNotFoundError) and status == 404:
        return Unavailable(f"{repository} @ {short}: no file {name}")
    if isinstance(error, httpx2.TransportError):
        host = urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]
        reason = str(error) or type(error).__name__
        return Unavailable(f"cannot reach {host}: {reason}; installed models run without it")
    if isinstance(error, HfHubHTTPError):
        return Unavailable(f"{repository}: the hub answers with status {status}: {str(error).splitlines()[0]}")
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(error, Path(constants.HF_HUB_CACHE))
    return ReleaseError(f"{repository}: {name or revision}: {error}")


def remove(report: Report, repository: str, commit: str, names: list[str]) -> int:
    """Remove files of a commit from the hub's cache, and return the number of freed bytes.

    Files of other commits and repositories stay, even if they have the same content.
    """
    cache = Path(constants.HF_HUB_CACHE)
    if not cache.is_dir():
        return 0
    cache_info = scan_cache_dir(cache)
    freed = 0
    for repo in cache_info.repos:
        if (repo.repo_type, repo.repo_id) != ("model", repository):
            continue
        for revision in repo.revisions:
            if revision.commit_hash != commit:
                continue
            places = {revision.snapshot_path / name for name in names}
            files = [file for file in revision.files if file.file_path in places]
            # Copies of a repository have the same commits, and the client library looks for a commit in all of them.
            of_repository = replace(cache_info, repos=frozenset([repo]))
            is_whole = len(files) == len(revision.files)
            plan = of_repository.delete_revisions(commit) if is_whole else of_repository.delete_files(*files)
            plan.execute()
            freed += int(plan.expected_freed_size)
    return freed


if __name__ == "__main__":
    _check_answers()
    serve(
        {
            "snapshot": snapshot,
            "text": text,
            "header": header,
            "download": download,
            "remove": remove,
        }
    )
