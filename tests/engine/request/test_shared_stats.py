"""Numbers that one process writes and another reads."""

import multiprocessing
from dataclasses import replace

from stretto.engine.request.shared_stats import NAMES, SHARES, EngineStats, SharedStats


def write_a_line(path: str, line: int, stats: EngineStats) -> None:
    from pathlib import Path

    SharedStats(Path(path), 2).write(line, stats)


def test_what_another_process_writes_is_read_here() -> None:
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
    shared.unlink()


def test_memory_without_a_name_still_works_and_leaves_no_file() -> None:
    shared = SharedStats.create(1)
    other = SharedStats(shared.path, 1)
    shared.unlink()
    assert not shared.path.exists()
    other.write(0, replace(EngineStats(), kv_usage=0.5))
    assert shared.read().kv_usage == 0.5
