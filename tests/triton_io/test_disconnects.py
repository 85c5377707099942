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


def test_the_marks_have_all_their_memory_from_the_beginning(path: Path) -> None:
    found = path.stat()
    assert found.st_blocks * 512 >= found.st_size == 8 * NUM_PLACES


def test_a_mark_is_seen_by_all_and_is_of_one_stream(path: Path) -> None:
    proxy, model = Disconnects(path), Disconnects(path)
    number = proxy.next_number()
    assert not model.has(number)
    proxy.record(number)
    assert model.has(number)
    others = [proxy.next_number() for _ in range(100)]
    assert not any(model.has(other) for other in (*others, number - NUM_PLACES, number + NUM_PLACES))
    assert len({number, *others}) == 101


def test_a_proxy_that_was_started_again_numbers_otherwise(path: Path) -> None:
    assert Disconnects(path).next_number() != Disconnects(path).next_number()


def test_a_file_is_made_once_for_one_user(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        Disconnects.create(path)


def test_a_caller_has_left_by_a_mark_or_by_triton_s_word(path: Path) -> None:
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
def test_who_came_by_another_way_is_asked_after_of_triton_alone(path: Path, given: dict[str, object]) -> None:
    caller = Caller(Request({}, given=given), Disconnects(path))
    assert not caller.has_disconnected()
    caller.sender.client_is_gone = True
    assert caller.has_disconnected()


def test_without_a_launcher_there_are_none(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.delenv(DISCONNECTS_FILE, raising=False)
    assert Disconnects.from_environment() is None
    monkeypatch.setenv(DISCONNECTS_FILE, str(path))
    assert Disconnects.from_environment() is not None
