"""Messages between the engine's processes: requests, rows, pairs and statistics."""

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stretto.engine.protocol import (
    GUIDANCE_OFF,
    GUIDANCE_ON,
    NAMES,
    NO_CHANGE,
    SHARES,
    EngineStats,
    SharedStats,
    num_guided,
    partner_of,
    read_extra_args,
    read_rows,
    to_extra_args,
)
from stretto.errors import InvalidRequest
from stretto.machine.kv_blocks import blocks_in_window
from stretto.records.chunk import Alignment
from stretto.records.prompt import Condition, InputAudio, Prompt
from stretto.records.sampling import SamplingConfig, SegmentSampling

SAMPLING = SamplingConfig(SegmentSampling(0.7, 5, 0.9, 1, 20), SegmentSampling(1, max_rows=9), seed=(1 << 63) - 1)


def test_prompt_reaches_the_scheduler_without_what_only_the_front_end_needs() -> None:
    rows, heard = np.arange(12, dtype=np.int32).reshape(4, 3), np.ones((5, 2), np.float32)
    for sampling in (SAMPLING, replace(SAMPLING, guidance_scale=2.5, policy="until_s", schedule=(1, 13))):
        condition = Condition((4, 0), 0.1 * heard)
        sent = Prompt(
            "tts", rows, sampling, ("a",), audios=(InputAudio(1, 2, heard),), delayed_tail=rows[:2, 1:], track=(5, 6)
        )
        sent = replace(sent, condition=condition, alignment=Alignment("a"), opening="b", is_open=True, voice=3)
        extra_args = msgspec.msgpack.decode(msgspec.msgpack.encode(to_extra_args(sent, "a")))
        read, host = read_extra_args(extra_args, num_streams=3)
        assert (read.task, read.sampling, read.track, read.is_open, host) == ("tts", sampling, (5, 6), True, "a")
        assert (read.words, read.alignment, read.opening, read.voice) == ((), None, "", 0)
        np.testing.assert_array_equal(read.rows, rows, strict=True)
        np.testing.assert_array_equal(read.codes, [*rows[:, 1:], *rows[:2, 1:]])
        (audio,) = read.audios
        assert (audio.first_row, audio.num_rows) == (1, 2)
        np.testing.assert_array_equal(audio.features, heard)
        assert read.condition is not None
        assert read.condition.ids == (4, 0)
        np.testing.assert_array_equal(read.condition.vectors, condition.vectors, strict=True)


def test_value_of_another_type_is_refused_before_it_reaches_an_engine() -> None:
    """An engine that cannot read a request ends."""
    prompt: Any = Prompt("tts", np.zeros((4, 3), np.int32), SAMPLING)
    with pytest.raises(InvalidRequest, match=r"^prompt.is_open: expected bool, got 1$"):
        to_extra_args(replace(prompt, is_open=1))
    with pytest.raises(InvalidRequest, match=r"^prompt: expected Python's own types, got .*numpy.float64"):
        to_extra_args(replace(prompt, sampling=replace(SAMPLING, min_p=np.float64(0.1))))


def test_rows_are_read_with_their_guidance_marks() -> None:
    ids = [NO_CHANGE, 1, 2, GUIDANCE_OFF, 3, 4, GUIDANCE_ON, 5, 6]
    assert read_rows(ids, 2).tolist() == [[NO_CHANGE, 1, 2], [GUIDANCE_OFF, 3, 4], [GUIDANCE_ON, 5, 6]]


def test_last_message_may_have_no_rows() -> None:
    assert read_rows([], 2).shape == (0, 3)


def test_incomplete_rows_are_rejected() -> None:
    with pytest.raises(ValueError, match="reshape"):
        read_rows([NO_CHANGE, 1, 2, NO_CHANGE], 2)


def test_cfg_request_ids_name_their_partner() -> None:
    assert partner_of("r1") == "r1#unconditional"
    assert partner_of("r1#unconditional") == "r1"


def test_guided_frames_are_counted_from_guidance_changes() -> None:
    assert num_guided([], 7) == 7
    assert num_guided([3], 7) == 3
    assert num_guided([3, 5], 7) == 5
    assert num_guided([3, 9], 7) == 3, "a turn behind the last frame"


def test_kv_blocks_in_window_are_counted_per_request() -> None:
    assert blocks_in_window(33, 32, None, 100) == 2
    assert blocks_in_window(3000, 32, 65, 2) == 4  # rows 31 to 96 of three blocks, and the next block
    assert blocks_in_window(33, 32, 65, 2) == 2


def write_a_line(path: str, line: int, stats: EngineStats) -> None:
    SharedStats(Path(path), 2).write(line, stats)


def test_shared_stats_are_read_across_processes() -> None:
    shared = SharedStats.create(2)
    stats = EngineStats(**{name: float(index + 1) for index, name in enumerate(NAMES)})
    for line in (0, 1):
        writer = multiprocessing.get_context("fork").Process(target=write_a_line, args=(str(shared.path), line, stats))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
    read = shared.read()
    assert {name: getattr(read, name) for name in NAMES} == {
        name: getattr(stats, name) * (1 if name in SHARES else 2) for name in NAMES
    }
    shared.close()


def test_shared_stats_memory_has_no_file_and_outlives_its_creator() -> None:
    before = set(Path("/dev/shm").iterdir())
    shared = SharedStats.create(1)
    assert not {path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("stretto_stats")}
    other = SharedStats(shared.path, 1)
    shared.close()
    assert not shared.path.exists()
    other.write(0, replace(EngineStats(), kv_usage=0.5))
    assert shared.read().kv_usage == 0.5
