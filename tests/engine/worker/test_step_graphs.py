"""Steps are captured, replayed or launched directly, with a fake CUDA graph recorder."""

from collections.abc import Callable

import pytest
import torch

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.step_graphs import StepGraphs, padded_sizes
from stretto.engine.worker.step_program import Variant
from stretto.family.base import Family
from stretto.machine.cuda_graphs import CudaRecorder
from tests.engine.worker.walks import LENGTH, Walk, captured
from tests.speech_families import EIGHT_STREAMS, INTERLEAVED
from tests.tiers import by_night

SPEAK, WRITE = Variant(False, True), Variant(True, True)


class Recording:
    """A captured step, and the number of its replays."""

    def __init__(self, work: Callable[[], None]):
        self._work, self.num_replays = work, 0

    def replay(self) -> None:
        self.num_replays += 1
        self._work()


class FakeRecorder:
    """Fake recorder that, like CUDA, records without running, and fails from recording number `fails_at`."""

    def __init__(self, fails_at: int | None = None):
        self.recordings: list[Recording] = []
        self.is_capturing, self._fails_at = False, fails_at

    def is_busy(self) -> bool:
        return self.is_capturing

    def record(self, work: Callable[[], None]) -> Recording:
        if len(self.recordings) == self._fails_at:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recordings.append(Recording(work))
        return self.recordings[-1]


def graphs(
    recorder: FakeRecorder | None, can_capture: Callable[[Variant, int], bool] = lambda variant, size: True
) -> tuple:
    launched: list[tuple[Variant, int]] = []
    return StepGraphs(lambda *step: launched.append(step), 20, recorder, can_capture), launched


def test_padded_sizes_match_vllm_up_to_the_largest_batch() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert padded_sizes(300)[-5:] == [248, 256, 272, 288, 300]


def test_new_step_size_is_captured_once_then_replayed() -> None:
    recorder = FakeRecorder()
    steps, launched = graphs(recorder)
    for num_rows in (3, 3, 4, 5):
        steps.run(SPEAK, num_rows)
    assert [recording.num_replays for recording in recorder.recordings] == [2, 0]
    assert launched == [(SPEAK, 4)] * 3 + [(SPEAK, 8)]


def test_steps_captured_at_start_are_always_replayed() -> None:
    recorder = FakeRecorder()
    steps, launched = graphs(recorder)
    steps.capture([SPEAK, WRITE])
    assert launched == [(variant, size) for variant in (SPEAK, WRITE) for size in (20, 16, 8, 4, 2, 1)]
    steps.capture([SPEAK, WRITE])  # vLLM captures twice
    assert len(recorder.recordings) == steps.num_graphs == 12
    for num_rows in range(1, 21):
        steps.run(WRITE, num_rows)
    assert sum(recording.num_replays for recording in recorder.recordings) == 20


def test_no_graph_capture_during_vllm_capture_or_across_ranks() -> None:
    recorder = FakeRecorder()
    steps, launched = graphs(recorder, lambda variant, size: not variant.writes)
    recorder.is_capturing = True
    steps.run(SPEAK, 4)
    recorder.is_capturing = False
    steps.run(WRITE, 4)
    assert not recorder.recordings
    assert launched == [(SPEAK, 4), (WRITE, 4)]


def test_failed_graph_capture_is_logged_once_and_steps_run_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    recorder = FakeRecorder(fails_at=1)
    steps, launched = graphs(recorder)
    for num_rows in (1, 1, 2, 2, 4, 1):
        steps.run(SPEAK, num_rows)
    assert launched == [(SPEAK, size) for size in (1, 1, 2, 2, 4, 1)], "replayed or not"
    assert (steps.num_graphs, recorder.recordings[0].num_replays) == (0, 1), "what was captured before went with it"
    assert [record.message for record in caplog.records if "CUDA graph" in record.message] == [
        "steps of 2 rows run without a CUDA graph, because capturing failed: "
        "operation not permitted when stream is capturing"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", [INTERLEAVED, *by_night(EIGHT_STREAMS)], ids=lambda family: family.name)
def test_replayed_steps_in_padded_batches_match_launched_steps(family: Family) -> None:
    """Replays read the current tables, and padding rows do not change any request's state."""
    rules = SegmentRules(family, LENGTH)
    recorder = FakeRecorder()
    replayed, launched = captured(rules, 5, recorder), captured(rules, 5)
    walk = Walk(family, [replayed, launched], seed=3)
    for step in range(16):
        for mine, expected in zip(*walk.step(), strict=True):
            assert torch.equal(mine, expected), step
        for name in ("state", "codes"):
            assert torch.equal(getattr(replayed.slots.tables, name), getattr(launched.slots.tables, name)), step
    assert sum(recording.num_replays for recording in recorder.recordings) >= 12


def test_failed_step_graph_capture_restores_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    class Capture:
        def __init__(self, graph: object, **options: object):
            assert options["capture_error_mode"] == "thread_local"

        def __enter__(self) -> None:
            calls.append("enter")

        def __exit__(self, *error: object) -> None:
            raise RuntimeError("capture_end failed")  # as torch does, and leaves its stream current

    for name, value in (
        ("graph_pool_handle", lambda: (0, 0)),
        ("CUDAGraph", object),
        ("current_stream", lambda: "mine"),
        ("graph", Capture),
        ("set_stream", calls.append),
        ("synchronize", lambda: calls.append("synchronize")),
        ("current_device", lambda: 3),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *place: calls.append(place), raising=False)
    with pytest.raises(RuntimeError, match="capture_end failed"):
        CudaRecorder().record(lambda: calls.append("work"))
    assert calls == ["enter", "work", "mine", "synchronize", (3, (0, 0))]
