"""What the scheduler, in the engine's process, tells the process that owns the metrics: one line of numbers each step.

SpeechLLM  ── makes a board, one line per scheduler; its path travels in vLLM's `additional_config` ──►  scheduler
SpeechLLM  ◄──────────────── reads the lines whenever somebody asks ────────────────  writes its line in place
"""

import mmap
import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

KEY = "speech_figures"


@dataclass
class SchedulerFigures:
    """What a scheduler has done (`…_total`) and holds now.

    engine_busy_seconds_total: time in which a step was on its way. step_seconds: how long the last step took, to its
    output. held_pairs: guided replies whose halves wait for each other. kv_usage: share of the KV blocks in use.
    """

    engine_steps_total: float = 0.0
    engine_busy_seconds_total: float = 0.0
    engine_rows_total: float = 0.0
    preemptions_total: float = 0.0
    preempted_pairs_total: float = 0.0
    dropped_halves_total: float = 0.0
    restored_halves_total: float = 0.0
    step_seconds: float = 0.0
    running_requests: float = 0.0
    waiting_requests: float = 0.0
    running_pairs: float = 0.0
    held_pairs: float = 0.0
    kv_usage: float = 0.0


NAMES = tuple(column.name for column in fields(SchedulerFigures))
SHARES = frozenset({"kv_usage", "step_seconds"})  # averaged over schedulers; all others are summed


class FigureBoard:
    """A line of figures for each scheduler, in memory that two processes see; each number is stored at once."""

    def __init__(self, path: Path, num_lines: int):
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), num_lines * len(NAMES) * 8)
        self._lines = np.frombuffer(self._map, np.float64).reshape(num_lines, len(NAMES))

    @classmethod
    def create(cls, num_lines: int) -> "FigureBoard":
        """A board of zeros; `unlink` it once all schedulers have opened it."""
        shared = Path("/dev/shm")
        descriptor, name = tempfile.mkstemp(prefix="stretto_figures_", dir=shared if shared.is_dir() else None)
        os.ftruncate(descriptor, num_lines * len(NAMES) * 8)
        os.close(descriptor)
        return cls(Path(name), num_lines)

    def unlink(self) -> None:
        """Take the name away; who has the board open keeps it."""
        self.path.unlink(missing_ok=True)

    def write(self, line: int, figures: SchedulerFigures) -> None:
        """Replace one scheduler's line."""
        self._lines[line] = [getattr(figures, name) for name in NAMES]

    def read(self) -> SchedulerFigures:
        """All schedulers together."""
        totals = self._lines.sum(0)
        values = {
            name: float(total) / (len(self._lines) if name in SHARES else 1)
            for name, total in zip(NAMES, totals, strict=True)
        }
        return SchedulerFigures(**values)
