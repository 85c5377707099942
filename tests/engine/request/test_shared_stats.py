"""Numbers that one process writes and another reads."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

from stretto.engine.protocol import NAMES, SHARES, EngineStats, SharedStats


def write_a_line(path: str, line: int, stats: EngineStats) -> None:
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
    shared.close()


def test_the_memory_has_no_file_and_outlives_its_opening() -> None:
    before = set(Path("/dev/shm").iterdir())
    shared = SharedStats.create(1)
    assert not {path for path in set(Path("/dev/shm").iterdir()) - before if path.name.startswith("stretto_stats")}
    other = SharedStats(shared.path, 1)
    shared.close()
    assert not shared.path.exists()
    other.write(0, replace(EngineStats(), kv_usage=0.5))
    assert shared.read().kv_usage == 0.5
