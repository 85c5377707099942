"""What the scheduler, in the engine's process, tells the process that owns the metrics: one line of numbers each step.

SpeechLLM  ── makes the memory, one line per scheduler; its path travels in vLLM's `additional_config` ──►  scheduler
SpeechLLM  ◄──────────────── reads the lines whenever somebody asks ────────────────  writes its line in place
"""

import mmap
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

KEY = "speech_stats"


@dataclass
class EngineStats:
    """What a scheduler has done (`…_total`) and holds now.

    engine_busy_seconds_total: time in which a step was on its way. step_seconds: how long the last step took, to its
    output. held_pairs: guided replies whose halves wait for each other. kv_usage: share of the KV blocks in use.
    replies_without_words: whose next row waits for text that has not come; seconds_without_words_total: of all of them.
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
    """A line of numbers for each scheduler, in memory that two processes see; each number is stored at once."""

    def __init__(self, path: Path, num_lines: int, descriptor: int | None = None):
        self.path, self._descriptor = path, descriptor
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), num_lines * len(NAMES) * 8)
        self._lines = np.frombuffer(self._map, np.float64).reshape(num_lines, len(NAMES))

    @classmethod
    def create(cls, num_lines: int) -> "SharedStats":
        """Lines of zeros; `close` them once all schedulers have opened them.

        The memory has no name of its own, so that no file stays where this process is killed: it goes with whoever
        has it open. Others of this user find it through this process.
        """
        descriptor = os.memfd_create("stretto_stats", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, num_lines * len(NAMES) * 8)
        return cls(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), num_lines, descriptor)

    def close(self) -> None:
        """Let nobody else open them; who has keeps the memory."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, line: int, stats: EngineStats) -> None:
        """Replace one scheduler's line."""
        self._lines[line] = [getattr(stats, name) for name in NAMES]

    def read(self) -> EngineStats:
        """All schedulers together."""
        totals = self._lines.sum(0)
        values = {
            name: float(total) / (len(self._lines) if name in SHARES else 1)
            for name, total in zip(NAMES, totals, strict=True)
        }
        return EngineStats(**values)
