"""MAC of records: unchanged records are accepted, all others refused; processes of one server share a key."""

import multiprocessing
import os
import signal
import stat
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.errors import InvalidRequest
from stretto.triton_io.seal import Seal, SealKey
from tests.patience import PATIENCE_S

SEAL = Seal(bytes(32))
REFUSED = "^chunk: expected a record authenticated by this server, got another record$"
CODES = np.arange(12, dtype=np.int32).reshape(3, 4)


@pytest.mark.parametrize("arrays", [(), (None,), (CODES,), (CODES.T, None), (np.zeros((2, 0), np.int32),)])
def test_authenticated_records_open_with_their_arrays(arrays: tuple[np.ndarray | None, ...]) -> None:
    assert SEAL.open("chunk", SEAL.close("chunk", b"{}", *arrays), *arrays) == b"{}"


@given(st.binary(max_size=64))
def test_unauthenticated_records_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match=REFUSED):
        SEAL.open("chunk", text)


@pytest.mark.slow
@given(st.data())
def test_changed_byte_fails_authentication(data: st.DataObject) -> None:
    sealed = bytearray(SEAL.close("chunk", b'{"index": 1}', CODES))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRequest, match=REFUSED):
        SEAL.open("chunk", bytes(sealed), CODES)


@pytest.mark.parametrize(
    "arrays",
    [(), (None,), (CODES + 1,), (CODES.reshape(4, 3),), (CODES.astype(np.int64),), (CODES, None), (CODES[:, :3],)],
)
def test_authenticated_records_reject_changed_arrays(arrays: tuple[np.ndarray | None, ...]) -> None:
    with pytest.raises(InvalidRequest, match=REFUSED):
        SEAL.open("chunk", SEAL.close("chunk", b"{}", CODES), *arrays)


def test_mac_is_bound_to_its_tensor_and_key() -> None:
    with pytest.raises(InvalidRequest, match=REFUSED):
        SEAL.open("chunk", SEAL.close("prompt", b"{}"))
    with pytest.raises(InvalidRequest, match=REFUSED):
        SEAL.open("chunk", Seal(b"x" * 32).close("chunk", b"{}"))


def sealed_file(folder: Path) -> Path:
    return folder.parent / "sealed"


def hold(folder: Path, ready: Event, done: Event) -> None:
    key = SealKey(os.getppid(), folder)
    sealed_file(folder).write_bytes(key.seal.close("chunk", b"{}"))
    ready.set()
    done.wait(PATIENCE_S)
    key.close()


def start(folder: Path) -> tuple[multiprocessing.Process, Event]:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder, ready, done))
    process.start()
    assert ready.wait(PATIENCE_S)
    return process, done


def test_mac_key_is_shared_and_removed_by_the_last_process(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first, done = start(folder)
    key = SealKey(os.getpid(), folder)
    assert key.seal.open("chunk", sealed_file(folder).read_bytes()) == b"{}"
    (path,) = folder.iterdir()
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (0o600, 0o700)
    done.set()
    first.join()
    assert path.exists()
    key.close()
    assert not path.exists()


def test_mac_keys_differ_per_server_and_stale_ones_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    process, _ = start(folder)
    (path,) = folder.iterdir()
    other = SealKey(os.getppid(), folder)
    assert path.exists()
    with pytest.raises(InvalidRequest):
        other.seal.open("chunk", sealed_file(folder).read_bytes())
    other.close()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    again = SealKey(os.getpid(), folder)
    with pytest.raises(InvalidRequest):
        again.seal.open("chunk", sealed_file(folder).read_bytes())
    again.close()
    assert not list(folder.iterdir())


def test_key_folder_readable_by_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="must be accessible to this user only"):
        SealKey(os.getpid(), tmp_path / "keys")
