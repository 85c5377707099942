"""Adaptive guidance: unconditional requests end and return at whole rows.

The youngest ends first, the oldest returns first.
"""

from vllm.v1.request import Request, RequestStatus

from stretto.engine.scheduling.adaptive_guidance import AdaptiveGuidance, GuidanceChanges
from stretto.engine.scheduling.request_table import RequestTable
from tests.engine.scheduling.tables import FakeBlocks, arrive, pair, run, speak, table

NOTHING = GuidanceChanges()
LAG = 2


class FakeLoad:
    """Fake `StepLoad`. `wanted` unconditional requests are in excess or, if negative, may be restored."""

    def __init__(self) -> None:
        self.wanted = 0
        self.num_started_over = 0
        self.counted: list[bool] = []

    def begin_step(self, is_counted: bool) -> None:
        self.counted.append(is_counted)

    def end_schedule(self, num_rows: int) -> None:
        """Do nothing."""

    def excess(self, num_rows: int) -> int:
        return self.wanted

    def start_over(self) -> None:
        self.num_started_over += 1


class Scene:
    """Guided replies in their audio segments, with the scheduler's decisions for them."""

    def __init__(self, *names: str, policy: str = "adaptive", **changes: object) -> None:
        self.table: RequestTable = table()
        self.blocks, self.load = FakeBlocks(), FakeLoad()
        self.guidance = AdaptiveGuidance(self.table, self.blocks, self.load, LAG)
        self.running: list[Request] = []
        self.step = 0
        for name in names:
            self.running += run(*pair(self.table, name, policy=policy, **changes))
            self.guidance.add(self.table[name])

    def change(self, wanted: int = 0) -> tuple[list[str], list[str]]:
        """Return the requests that lose and those that regain their unconditional request before the next step."""
        self.step, self.load.wanted = self.step + 1, wanted
        dropped, restored = self.guidance.change(self.running, self.step)
        for state in dropped:
            half = self.table.drop_unconditional(state)
            self.running = [request for request in self.running if request.request_id != half]
            self.guidance.remove(half)
        for state in restored:
            self.table.add_unconditional(state)
        return [s.request.request_id for s in dropped], [s.request.request_id for s in restored]


def test_youngest_cfg_pairs_lose_guidance_first() -> None:
    scene = Scene("a", "b", "c")
    assert scene.change(2) == (["c", "b"], [])
    assert list(scene.guidance.dropped) == ["c", "b"]
    assert scene.guidance.num_dropped == 2
    assert scene.load.num_started_over > 0
    assert scene.change(9) == (["a"], []), "no more than there are"


def test_adaptive_guidance_ignores_other_policies() -> None:
    scene = Scene("a", policy="always")
    assert scene.change(5) == ([], [])
    assert scene.guidance.adaptive == set()


def test_oldest_request_regains_guidance_after_the_worker_lag() -> None:
    scene = Scene("a", "b")
    scene.change(2)
    for _ in range(LAG):
        assert scene.change(-1) == ([], [])
    assert scene.change(-1) == ([], ["a"])
    assert scene.guidance.num_restored == 1
    assert scene.change(-1) == ([], []), "one at a time"
    speak(scene.table["a"])
    assert scene.change() == ([], [])
    assert not scene.guidance.returning, "it has caught up"
    assert scene.change(-1) == ([], ["b"])


def test_restoring_guidance_waits_for_rows_in_flight() -> None:
    scene = Scene("a")
    scene.change(1)
    scene.step += LAG
    scene.table["a"].request.num_output_placeholders = 1
    assert scene.change(-1) == ([], [])
    assert scene.table["a"].pair.awaits_unconditional
    assert scene.change(9) == ([], []), "nothing else changes meanwhile"
    scene.table["a"].request.num_output_placeholders = 0
    assert scene.change() == ([], ["a"])
    assert scene.load.counted[-2:] == [False, False], "such steps say nothing of how slow others are"


def test_restoring_guidance_preempts_no_request() -> None:
    scene = Scene("a")
    scene.change(1)
    scene.step += LAG
    scene.blocks.free = 2
    assert scene.change(-1) == ([], [])
    scene.blocks.free = 3
    assert scene.change(-1) == ([], ["a"])


def test_preemption_cancels_restoring_guidance() -> None:
    scene = Scene("a")
    scene.change(1)
    scene.step += LAG
    request = scene.table["a"].request
    request.num_output_placeholders = 1
    scene.change(-1)
    request.status = RequestStatus.PREEMPTED
    scene.running = []
    assert scene.change() == ([], [])
    assert not scene.table["a"].pair.awaits_unconditional
    assert list(scene.guidance.dropped) == ["a"]


def test_new_requests_start_unguided_while_older_ones_are_unguided() -> None:
    scene = Scene("a", "b")
    new = arrive(scene.table, "new", policy="adaptive")
    scene.guidance.add(scene.table["new"])
    assert scene.guidance.begins(scene.table["new"], 1)
    scene.change(1)
    assert not scene.guidance.begins(scene.table["new"], 2)
    assert list(scene.guidance.dropped) == ["b", "new"]
    arrive(scene.table, "always", policy="always")
    assert scene.guidance.begins(scene.table["always"], 2)
    scene.guidance.remove(new.request_id)
    assert list(scene.guidance.dropped) == ["b"]


def test_timed_guidance_ends_once_at_its_row() -> None:
    scene = Scene("a", policy="until_s", guided_until_s=0.16)
    state = scene.table["a"]
    speak(state)
    assert scene.guidance.ended() == []
    speak(state)
    assert scene.guidance.ended() == [state]
    assert scene.guidance.ended() == [], "once"


def test_adaptive_guidance_forgets_ended_requests() -> None:
    scene = Scene("a", "b")
    scene.change(2)
    for name in ("a", "b"):
        scene.table.remove(name)
        scene.guidance.remove(name)
    guidance = scene.guidance
    assert (guidance.limited, guidance.dropped, guidance.returning, guidance.adaptive) == ({}, {}, {}, set())
