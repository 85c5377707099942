"""The rows of a reply that have not left the engine yet: those that nobody waits for leave together.

A message from the engine costs its receiver as much for one row as for ten. So a row waits for those behind it while
the listener has enough to play, and is sent at once while there is nothing, or not enough.
"""

import time
from collections.abc import Callable

from stretto.engine.request.tracker import SegmentTracker
from stretto.streams.segment import Segment

MAX_WAIT_S = 0.2
WAIT_SHARE = 0.25  # of what was made in advance
SCRIPT_WAITS_S = 0.1, 0.5  # the least and the longest, of text that is to be spoken
LEAST_LEAD_S = 0.25  # beside that of the first chunks, which wait for each of their frames


class OutgoingRows:
    """The rows of one reply that have not left the engine yet, as `wire.py` has them.

    No row of audio waits for longer than a share of what was made in advance of a player that began with the first;
    none of text for longer than it took from the first to the last that has left, or twice as long where the text is
    spoken after it is written: its listener waits for the end of it.
    """

    def __init__(self, tracker: SegmentTracker, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracker, self._clock = tracker, clock
        self._frame_rate = tracker.rules.family.frame_rate
        self._speaks = Segment.AUDIO in tracker.task.segments
        self._ids: list[int] = []
        self._is_audio: bool | None = None
        self._began_s = self._due_s = 0.0  # when the text or the audio began, and when its next rows leave

    def push(self, rows: list[int], is_last: bool) -> list[int]:
        """Take the newest rows, which the tracker has seen; returns the rows that leave with them: all or none."""
        now = self._clock()
        is_audio = self._tracker.audio_start >= 0 or self._tracker.num_interleaved > 0
        if is_audio is not self._is_audio:
            self._is_audio, self._began_s, self._due_s = is_audio, now, now
        self._ids += rows
        if now < self._due_s and not is_last:
            return []
        self._due_s = now + self._wait_s(now - self._began_s)
        return self.take()

    def take(self) -> list[int]:
        """All that wait."""
        ids, self._ids = self._ids, []
        return ids

    def _wait_s(self, elapsed_s: float) -> float:
        """How long the rows that follow may wait."""
        if not self._is_audio:
            least_s, longest_s = SCRIPT_WAITS_S
            return min(longest_s, max(least_s, 2 * elapsed_s)) if self._speaks else min(MAX_WAIT_S, elapsed_s)
        if self._frame_rate <= 0:
            return 0.0
        lead_s = self._tracker.num_frames / self._frame_rate - elapsed_s - LEAST_LEAD_S
        return min(MAX_WAIT_S, WAIT_SHARE * max(lead_s, 0.0))
