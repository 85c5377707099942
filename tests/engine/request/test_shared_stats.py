"""The board: figures that one process writes and another reads."""

import multiprocessing
from dataclasses import replace

from stretto.engine.request.shared_stats import NAMES, SHARES, FigureBoard, SchedulerFigures


def write_a_line(path: str, line: int, figures: SchedulerFigures) -> None:
    from pathlib import Path

    FigureBoard(Path(path), 2).write(line, figures)


def test_what_another_process_writes_is_read_here() -> None:
    board = FigureBoard.create(2)
    figures = SchedulerFigures(**{name: float(index + 1) for index, name in enumerate(NAMES)})
    for line in (0, 1):
        writer = multiprocessing.get_context("fork").Process(target=write_a_line, args=(str(board.path), line, figures))
        writer.start()
        writer.join()
        assert writer.exitcode == 0
    read = board.read()
    assert {name: getattr(read, name) for name in NAMES} == {
        name: getattr(figures, name) * (1 if name in SHARES else 2) for name in NAMES
    }
    board.unlink()


def test_a_board_without_a_name_still_works_and_leaves_no_file() -> None:
    board = FigureBoard.create(1)
    other = FigureBoard(board.path, 1)
    board.unlink()
    assert not board.path.exists()
    other.write(0, replace(SchedulerFigures(), kv_usage=0.5))
    assert board.read().kv_usage == 0.5
