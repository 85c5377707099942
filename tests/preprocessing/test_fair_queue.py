"""Order of a fair queue."""

import threading
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from stretto.preprocessing.audio import FairQueue
from tests.patience import PATIENCE_S


def test_fair_queue_is_round_robin_over_hosts() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.put(item[0], item)
    assert [queue.get() for _ in range(3)] == ["a1", "b1", "c1"]
    queue.put("b", "b2")
    assert [queue.get() for _ in range(4)] == ["a2", "c2", "b2", "a3"]


@given(st.lists(st.sampled_from("abcd"), max_size=40))
def test_fair_queue_is_fifo_per_host_and_round_robin_across_hosts(hosts: list[str]) -> None:
    queue, left = FairQueue[tuple[str, int]](), defaultdict[str, list[int]](list)
    for number, host in enumerate(hosts):
        queue.put(host, (host, number))
        left[host].append(number)
    since = dict.fromkeys(left, 0)  # items of others that came since a host's last
    for _ in hosts:
        taken = queue.get()
        assert taken is not None
        host, number = taken
        assert left[host].pop(0) == number
        since = {each: 0 if each == host else count + 1 for each, count in since.items() if left[each]}
        assert all(count <= len(set(hosts)) for count in since.values())
    queue.close()
    assert queue.get() is None


def test_closing_the_queue_wakes_waiting_readers() -> None:
    queue, got = FairQueue[int](), list[int | None]()
    waiting = threading.Thread(target=lambda: got.append(queue.get()))
    waiting.start()
    queue.close()
    waiting.join(PATIENCE_S)
    assert got == [None]
