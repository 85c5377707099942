"""Reports of client disconnects to the models."""

from pathlib import Path

import pytest

from stretto.disconnects import DISCONNECTS_FILE, NUM_PLACES, STREAM, Disconnects
from stretto.triton_io.callers import Caller
from tests.fakes_triton import Request


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Disconnects.create(tmp_path / "disconnects")
    return tmp_path / "disconnects"


def test_disconnect_flags_are_fully_allocated_at_creation(path: Path) -> None:
    found = path.stat()
    assert found.st_blocks * 512 >= found.st_size == 8 * NUM_PLACES


def test_disconnect_flag_is_shared_and_affects_one_stream(path: Path) -> None:
    proxy, model = Disconnects(path), Disconnects(path)
    number = proxy.next_number()
    assert not model.has(number)
    proxy.record(number)
    assert model.has(number)
    others = [proxy.next_number() for _ in range(100)]
    assert not any(model.has(other) for other in (*others, number - NUM_PLACES, number + NUM_PLACES))
    assert len({number, *others}) == 101


def test_restarted_proxy_uses_different_stream_numbers(path: Path) -> None:
    assert Disconnects(path).next_number() != Disconnects(path).next_number()


def test_disconnects_file_is_private_and_created_once(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        Disconnects.create(path)


def test_client_disconnect_is_flagged_by_proxy_or_triton(path: Path) -> None:
    disconnects = Disconnects(path)
    number = disconnects.next_number()
    request = Request({}, given={STREAM: str(number)})
    caller, other = Caller(request, disconnects), Caller(Request({}, given={STREAM: str(number + 1)}), disconnects)
    assert not caller.has_disconnected()
    disconnects.record(number)
    assert caller.has_disconnected()
    assert not other.has_disconnected()
    other.sender.client_is_gone = True
    assert other.has_disconnected()


@pytest.mark.parametrize("given", [{}, {STREAM: "0"}, {STREAM: "x"}, {STREAM: 3}])
def test_requests_without_a_stream_number_rely_on_triton_disconnects(path: Path, given: dict[str, object]) -> None:
    caller = Caller(Request({}, given=given), Disconnects(path))
    assert not caller.has_disconnected()
    caller.sender.client_is_gone = True
    assert caller.has_disconnected()


def test_no_disconnect_flags_without_a_launcher(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.delenv(DISCONNECTS_FILE, raising=False)
    assert Disconnects.from_environment() is None
    monkeypatch.setenv(DISCONNECTS_FILE, str(path))
    assert Disconnects.from_environment() is not None
