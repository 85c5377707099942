"""A request that passes its turn goes on after those that waited; one without a client ends."""

import threading

import pytest

from stretto.errors import Cancelled
from stretto.family.encoding_turns import EncodingTurns, cancelled_by, pass_turn


def test_waiting_requests_encode_between_two_chunks() -> None:
    turns = EncodingTurns()
    chunks = list[str]()

    def encode(name: str, num_chunks: int) -> None:
        with turns.turn():
            for _ in range(num_chunks):
                chunks.append(name)
                pass_turn()

    turns.acquire()
    threads = list[threading.Thread]()
    for number, (name, num_chunks) in enumerate((("long", 4), ("short", 1), ("other", 2)), 2):
        threads.append(threading.Thread(target=encode, args=(name, num_chunks)))
        threads[-1].start()
        while turns._num_asked < number:
            threading.Event().wait(0.001)
    turns.release()
    for thread in threads:
        thread.join()
    assert chunks == ["long", "short", "other", "long", "other", "long", "long"]
    with turns.turn():  # no turn is left held
        pass


def test_encoding_of_a_disconnected_client_ends() -> None:
    turns = EncodingTurns()
    answers = iter([False, True])
    with cancelled_by(lambda: next(answers)), turns.turn():
        pass_turn()
        with pytest.raises(Cancelled):
            pass_turn()
    with turns.turn():
        pass_turn()


def test_code_without_turns_goes_on() -> None:
    pass_turn()
