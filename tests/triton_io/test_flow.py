"""Slots in shared memory: claim, acknowledgement, release, and removal of dead processes' files."""

import errno
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stretto.errors import Overloaded
from stretto.records.flow_address import FlowAddress
from stretto.streams.chunking import DecodingTime
from stretto.triton_io.flow import FlowTable, FlowTables, Outcome, conclude_all, remove_stale_tables
from tests.patience import PATIENCE_S


def hold_a_table(directory: Path, ready: "multiprocessing.synchronize.Event") -> None:
    slot = FlowTable.create(1, 2, directory).claim()
    ready.set()
    signal.pause()
    slot.release()


def test_acknowledgement_table_is_preallocated(tmp_path: Path) -> None:
    table = FlowTable.create(4711, 1024, tmp_path)
    found = table.path.stat()
    assert found.st_blocks * 512 >= found.st_size
    table.remove()


def test_failed_acknowledgement_table_creation_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", has_no_room)
    with pytest.raises(OSError, match="No space left on device"):
        FlowTable.create(4711, 4, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_flow_slots_are_shared_between_decoder_and_language_model(tmp_path: Path) -> None:
    table = FlowTable.create(4711, 4, tmp_path)
    mine = table.claim()
    theirs = FlowTables(tmp_path).slot_at(mine.address)
    assert (mine.num_answered, mine.outcome, mine.reason) == (0, Outcome.OPEN, "")
    theirs.count_answer()
    theirs.count_answer()
    assert mine.num_answered == 2
    theirs.conclude(Outcome.FAILED, "käputt " * 100)
    assert mine.outcome is Outcome.FAILED
    assert mine.reason.startswith("käputt käputt")
    assert table.path.name.startswith("stretto_flow_4711_")
    table.remove()
    assert not list(tmp_path.iterdir())


def test_late_outcome_does_not_affect_the_next_utterance_in_the_slot(tmp_path: Path) -> None:
    table = FlowTable.create(1, 1, tmp_path)
    late = FlowTables(tmp_path).slot_at(table.claim().address)
    table.release(late.address)
    successor = table.claim()
    assert successor.address.slot == late.address.slot
    late.conclude(Outcome.FAILED, "late")
    late.count_answer()
    assert (successor.num_answered, successor.outcome, successor.reason) == (0, Outcome.OPEN, "")
    assert late.outcome is Outcome.OPEN


def test_reclaimed_acknowledgement_slot_is_reset(tmp_path: Path) -> None:
    table = FlowTable.create(1, 1, tmp_path)
    first = table.claim()
    first.count_answer()
    first.conclude(Outcome.CANCELLED, "gone")
    first.release()
    second = table.claim()
    assert second.address == FlowAddress(table.path.name, first.address.slot, second.address.generation)
    assert second.address.generation != first.address.generation
    assert (second.num_answered, second.outcome, second.reason) == (0, Outcome.OPEN, "")


def test_first_outcome_is_kept(tmp_path: Path) -> None:
    slot = FlowTable.create(1, 1, tmp_path).claim()
    slot.conclude(Outcome.FAILED, "first")
    slot.conclude(Outcome.CANCELLED, "second")
    assert (slot.outcome, slot.reason) == (Outcome.FAILED, "first")


def test_long_outcome_reason_stays_within_its_slot(tmp_path: Path) -> None:
    table = FlowTable.create(1, 2, tmp_path)
    first, second = table.claim(), table.claim()
    first.conclude(Outcome.FAILED, "x" * 5000)
    assert (second.num_answered, second.outcome) == (0, Outcome.OPEN)
    assert table.num_active() == 2
    assert set(first.reason) == {"x"}


def test_acknowledgements_from_many_threads_are_all_counted(tmp_path: Path) -> None:
    slot = FlowTable.create(1, 1, tmp_path).claim()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(800):
            pool.submit(slot.count_answer)
    assert slot.num_answered == 800


def test_full_acknowledgement_table_refuses_new_claims(tmp_path: Path) -> None:
    table = FlowTable.create(1, 2, tmp_path)
    slots = [table.claim(), table.claim()]
    assert table.num_active() == 2
    with pytest.raises(Overloaded, match="2 utterances"):
        table.claim()
    slots[0].release()
    assert table.num_active() == 1
    assert table.claim().address.slot == slots[0].address.slot


def test_utterances_speak_until_their_slots_are_released(tmp_path: Path) -> None:
    table = FlowTable.create(1, 3, tmp_path)
    first, second, silent = (table.claim() for _ in range(3))
    for slot in (first, second, first):
        slot.begin_speech()
    assert silent.load.num_speaking == 2
    first.release()
    assert silent.load.num_speaking == 1
    assert table.claim().load.num_speaking == 1, "a slot's next utterance is silent at first"


def test_releasing_a_slot_twice_fails_an_assertion(tmp_path: Path) -> None:
    slot = FlowTable.create(1, 2, tmp_path).claim()
    slot.release()
    with pytest.raises(AssertionError):
        slot.release()


def test_only_flow_tables_of_dead_processes_are_removed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_a_table, args=(tmp_path, ready))
    process.start()
    assert ready.wait(PATIENCE_S)
    (path,) = tmp_path.iterdir()
    seen = FlowTable.open(path.name, tmp_path)
    assert seen.num_active() == 1
    assert remove_stale_tables(tmp_path) == []
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    table = FlowTable.create(2, 2, tmp_path)  # creating one cleans up
    assert list(tmp_path.iterdir()) == [table.path]
    assert path != table.path
    assert seen.num_active() == 0, "who still reads the table sees that all is over"


def test_restarted_decoder_concludes_flows_of_its_predecessor(tmp_path: Path) -> None:
    table, other = FlowTable.create(7, 4, tmp_path), FlowTable.create(77, 4, tmp_path)
    running, over, elsewhere = table.claim(), table.claim(), other.claim()
    over.conclude(Outcome.CANCELLED)
    conclude_all(7, Outcome.OVERLOADED, "started again", tmp_path)
    assert (running.outcome, running.reason) == (Outcome.OVERLOADED, "started again")
    assert over.outcome is Outcome.CANCELLED
    assert elsewhere.outcome is Outcome.OPEN


@pytest.mark.parametrize("slot", [0, -1, 3, 1 << 40])
def test_out_of_range_slot_is_refused(tmp_path: Path, slot: int) -> None:
    table = FlowTable.create(1, 2, tmp_path)
    with pytest.raises(ValueError, match=f"slot {slot} is not in stretto_flow_1_"):
        FlowTables(tmp_path).slot_at(FlowAddress(table.path.name, slot, 1))


def test_flow_table_names_and_generations_are_unpredictable(tmp_path: Path) -> None:
    table = FlowTable.create(1, 64, tmp_path)
    assert len(table.path.name.removeprefix("stretto_flow_1_")) == 32
    generations = [table.claim().address.generation for _ in range(64)]
    assert len(set(generations)) == 64
    assert max(generations) > 1 << 56  # below it, all of 64 random ones are once in 2 ** 448 times


@pytest.mark.parametrize("name", ["../passwd", "other_file", "stretto_flow_1", f"stretto_flow_1_{'a' * 32}/.."])
def test_only_flow_table_names_can_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a flow table"):
        FlowTable.open(name, tmp_path)


def test_invalid_acknowledgement_table_file_is_refused(tmp_path: Path) -> None:
    name = f"stretto_flow_1_{'a' * 32}"
    (tmp_path / name).write_bytes(bytes(64))
    with pytest.raises(ValueError, match="not a flow table"):
        FlowTable.open(name, tmp_path)


def test_acknowledgement_table_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = FlowTable.create(1, 4, tmp_path).path.name
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(ValueError, match=f"{name} belongs to another user"):
        FlowTable.open(name, tmp_path)


def test_longest_latency_decays_over_time(tmp_path: Path) -> None:
    table, now = FlowTable.create(1, 4, tmp_path), [100.0]
    table.clock = lambda: now[0]
    slot = table.claim()
    for seconds in (0.01, 0.5, 0.02):
        slot.note_latency(seconds)
    assert slot.load.latency_s == pytest.approx(0.5)
    assert table.claim().load.latency_s == slot.load.latency_s  # for the decoder, not for an utterance
    now[0] += 1.0
    assert slot.load.latency_s == pytest.approx(0.25)
    slot.note_latency(0.3)
    assert slot.load.latency_s == pytest.approx(0.3)
    now[0] += 10.0
    assert slot.load.latency_s < 0.001


def test_bound_on_gaps_between_frames_decays_to_the_latest_gap(tmp_path: Path) -> None:
    table, now = FlowTable.create(1, 4, tmp_path), [100.0]
    table.clock = lambda: now[0]
    slot = table.claim()
    assert slot.load.frame_gap_s == 0.0, "unknown"
    for seconds in (0.01, 0.5, 0.02):
        slot.note_gap(seconds)
    assert slot.load.frame_gap_s == pytest.approx(0.5)
    assert table.claim().load.frame_gap_s == slot.load.frame_gap_s, "of all utterances"
    now[0] += 1.0
    assert slot.load.frame_gap_s == pytest.approx(0.02 + 0.48 / 2)
    now[0] += 20.0
    assert slot.load.frame_gap_s == pytest.approx(0.02, abs=1e-4)


def test_decoding_time_is_the_last_one_set(tmp_path: Path) -> None:
    slot = FlowTable.create(1, 4, tmp_path).claim()
    for time in (DecodingTime(1.0, 2.0, 3.0), DecodingTime(0.5, 0.25, 0.125)):
        slot.set_time(time, has_graphs=True)
    assert slot.load.time == time
    assert slot.load.has_graphs
    slot.set_time(time, has_graphs=False)
    assert not slot.load.has_graphs


def test_unused_flow_tables_of_dead_owners_are_closed(tmp_path: Path) -> None:
    def held() -> list[str]:
        links = (os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        return [link for link in links if link.startswith(str(tmp_path))]

    tables, owners = FlowTables(tmp_path), [FlowTable.create(1, 2, tmp_path) for _ in range(3)]
    slots = [tables.slot_at(owner.claim().address) for owner in owners[:2]]
    for owner in owners[:2]:
        owner.remove()
    assert len(held()) == 2 + 2, "what a decoder still uses, and the owner's own with its lock"
    slots[1].note_progress()
    del slots[:]
    tables.slot_at(owners[2].claim().address)
    assert {link.removesuffix(" (deleted)") for link in held()} == {str(owners[2].path)}
    owners[2].remove()
