"""Upper bounds on the kernels that a step launches and the CUDA calls that it makes on a GPU."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stretto.engine.columns import STATE
from stretto.engine.kernels.gpu import advance
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker import step_program
from stretto.engine.worker.slots import HostArrays
from stretto.engine.worker.step_program import Variant
from stretto.families.tiny.family import TINY
from stretto.families.tiny.mechanism import draw
from stretto.family.base import Family
from tests.engine.worker.walks import LENGTH, Walk, captured, request
from tests.small_vocabularies import BAGPIPER, OPUSLM

KERNELS = ("attempt_keys_kernel", "text_maxima_kernel", "draw_text_kernel", "draw_streams_kernel", "advance_kernel")
MOST_BYTECODES = 600  # some 450, of Python 3.11
DECODE, TEXT = 6, 3  # keys, two products, two draws, the state; a product and two kernels more if a row may write text


class Operators(TorchDispatchMode):
    """Counter of torch operators that launch work on a device; views are not counted."""

    def __init__(self, seen: Counter[str]):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        if not all(each.alias_info is not None and not each.alias_info.is_write for each in returns):
            self._seen[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Counted:
    """Fake kernel that counts its launches."""

    def __init__(self, name: str, seen: Counter[str]):
        self._name, self._seen = name, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            self._seen[self._name] += 1

        return launch


class Silent:
    """Recorder whose recordings do nothing when replayed."""

    def __init__(self, seen: Counter[str]):
        self._seen = seen

    def is_busy(self) -> bool:
        return False

    def record(self, work: Callable[[], None]) -> "Silent":
        return self

    def replay(self) -> None:
        self._seen["replay"] += 1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    for name in KERNELS:
        monkeypatch.setattr(step_program, name, Counted(name, counted))
    monkeypatch.setattr(draw, "draw_script_kernel", Counted("draw_script_kernel", counted))
    monkeypatch.setattr(advance, "_gather_kernel", Counted("_gather_kernel", counted))
    return counted


@pytest.mark.parametrize("family", [TINY, BAGPIPER, OPUSLM], ids=lambda family: family.name)
def test_steady_step_launches_two_copies_a_graph_and_a_clone(family: Family, seen: Counter[str]) -> None:
    side = captured(SegmentRules(family, LENGTH), 4, Silent(seen))
    walk = Walk(family, [side], seed=0)
    walk.fill()
    batch, hidden = walk.batch()
    batch.prefill_len_np[:] = 1
    columns = side.sampler._program.columns
    side.sampler(hidden, batch)
    uploads = columns.num_uploads
    for _ in range(3):
        batch.num_computed_tokens_np += 1
        seen.clear()
        with Operators(seen):
            side.sampler(hidden, batch)
        assert seen == {"copy_": 2, "replay": 1, "clone": 1}
    assert columns.num_uploads == uploads == 1


def bytecodes(call: Callable[[], object]) -> int:
    """Return how many Python instructions `call` executes."""
    count, before = 0, sys.gettrace()

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_steady_step_host_cost_is_independent_of_batch_size(seen: Counter[str]) -> None:
    counts = []
    for num_pairs in (1, 32):
        side = captured(SegmentRules(BAGPIPER, LENGTH), 2 * num_pairs, Silent(seen))
        walk = Walk(BAGPIPER, [side], seed=0)
        walk.fill()
        side.slots.tables.state[:, STATE["audio_start"]] = 1
        batch, hidden = walk.batch()
        for _ in range(3):
            side.sampler(hidden, batch)
        counts.append(bytecodes(lambda side=side, hidden=hidden, batch=batch: side.sampler(hidden, batch)))
    assert counts[0] == counts[1] < MOST_BYTECODES


def test_plan_is_uploaded_when_a_slot_changes_its_request(seen: Counter[str]) -> None:
    side = captured(SegmentRules(BAGPIPER, LENGTH), 4, Silent(seen))
    walk = Walk(BAGPIPER, [side], seed=0)
    walk.fill()
    batch, hidden = walk.batch()
    side.sampler(hidden, batch)
    slot = int(batch.idx_mapping_np[0])
    side.slots.empty(walk.names[slot])
    side.slots.fill(slot, request(BAGPIPER, "new", 5, False))
    side.slots.tables.apply_staged(HostArrays())
    side.sampler(hidden, batch)
    assert side.sampler._program.columns.num_uploads == 2


@pytest.mark.parametrize("family", [TINY, BAGPIPER, OPUSLM], ids=lambda family: family.name)
def test_step_graphs_have_a_fixed_number_of_launches(family: Family, seen: Counter[str]) -> None:
    program = captured(SegmentRules(family, LENGTH), 4).sampler._program
    for variant, expected in (
        (Variant(False, True), DECODE),
        (Variant(True, True), DECODE + TEXT),
        (Variant(True, False), 2 + TEXT),
    ):
        seen.clear()
        with Operators(seen):
            program.launch(variant, 4)
        # The walk's own heads let segments end by an addition in place.
        assert max(seen.pop(operator, 0) for operator in ("add_", "copy_")) <= 1
        products = seen.pop("mm", 0)
        assert products + seen.total() == expected, seen
        assert set(seen) <= {*KERNELS, "draw_script_kernel"}


def test_rows_of_all_streams_are_gathered_by_one_kernel(seen: Counter[str]) -> None:
    ids, rows, codes = torch.zeros(4, dtype=torch.int32), torch.zeros(8, 9, dtype=torch.int32), torch.zeros(2, 9, 8)
    with Operators(seen):
        advance.gather_rows(rows, ids, ids.long(), ids.long(), codes.int(), 0)
    assert seen.pop("_to_copy") == 3  # this test's own
    assert seen == {"_gather_kernel": 1}
