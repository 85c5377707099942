"""Scheduler metrics in memory shared with the process that serves metrics: one line of numbers per scheduler.

SpeechLLM  ── creates the memory; its path travels in vLLM's `additional_config` ──►  scheduler
SpeechLLM  ◄──────────────── reads all lines on request ────────────────  writes its line in place
"""

import mmap
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

KEY = "speech_stats"


@dataclass
class EngineStats:
    """Counters (`…_total`) and gauges of a scheduler.

    Attributes:
        engine_busy_seconds_total: Time with a step in flight, in seconds.
        step_seconds: Duration of the last step, up to its output.
        held_pairs: Guided replies whose two requests wait for each other.
        kv_usage: Fraction of the KV blocks in use.
        replies_without_words: Replies blocked on text that has not arrived.
        seconds_without_words_total: Total time that replies were blocked, in seconds.
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
    replies_without_words: float = 0.0
    seconds_without_words_total: float = 0.0


NAMES = tuple(column.name for column in fields(EngineStats))
SHARES = frozenset({"kv_usage", "step_seconds"})  # averaged over schedulers; all others are summed


class SharedStats:
    """One line of numbers per scheduler in memory shared by two processes; each number is stored atomically."""

    def __init__(self, path: Path, num_lines: int, descriptor: int | None = None):
        self.path, self._descriptor = path, descriptor
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), num_lines * len(NAMES) * 8)
        self._lines = np.frombuffer(self._map, np.float64).reshape(num_lines, len(NAMES))

    @classmethod
    def create(cls, num_lines: int) -> "SharedStats":
        """Create lines of zeros; call `close` once all schedulers have opened them.

        The memory has no file name, so nothing is left over if this process is killed. Other processes of the same user
        open it through this process's entry in /proc.
        """
        descriptor = os.memfd_create("stretto_stats", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, num_lines * len(NAMES) * 8)
        return cls(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), num_lines, descriptor)

    def close(self) -> None:
        """Close the descriptor, so that no further process can open the memory; existing mappings stay valid."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, line: int, stats: EngineStats) -> None:
        """Replace the line of one scheduler."""
        self._lines[line] = [getattr(stats, name) for name in NAMES]

    def read(self) -> EngineStats:
        """Return the statistics of all schedulers combined."""
        totals = self._lines.sum(0)
        values = {
            name: float(total) / (len(self._lines) if name in SHARES else 1)
            for name, total in zip(NAMES, totals, strict=True)
        }
        return EngineStats(**values)
