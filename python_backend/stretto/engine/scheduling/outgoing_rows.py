"""Rows of a reply waiting to be sent to the front end, batched while the client has enough to play.

A message costs the receiver as much for one row as for ten. A row therefore waits for later ones while the client has
audio buffered, and is sent at once otherwise.
"""

import time
from collections.abc import Callable

from stretto.engine.request.tracker import SegmentTracker
from stretto.streams.segment import Segment

MAX_WAIT_S = 0.2
WAIT_SHARE = 0.25  # share of the audio generated ahead of playback
SCRIPT_WAITS_S = 0.1, 0.5  # shortest and longest wait for text that will be spoken
LEAST_LEAD_S = 0.25  # in addition to the lead of the first chunks, which are sent frame by frame


class OutgoingRows:
    """Rows of one reply that have not been sent yet, in the format of `protocol.py`.

    An audio row waits at most for a share of the audio generated ahead of a player that started with the first row. A
    text row waits at most for the time from the first to the last row sent, or twice that if the text is spoken after
    it has been generated, because its client waits for the end of the text.
    """

    def __init__(self, tracker: SegmentTracker, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracker, self._clock = tracker, clock
        self._frame_rate = tracker.rules.family.frame_rate
        self._speaks = Segment.AUDIO in tracker.task.segments
        self._ids: list[int] = []
        self._is_audio: bool | None = None
        self._began_s = self._due_s = 0.0  # start of the text or audio, and due time of its next rows

    def push(self, rows: list[int], is_last: bool) -> list[int]:
        """Add the newest rows, already seen by the tracker, and return the rows to send now: all or none."""
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
        """Remove and return all waiting rows."""
        ids, self._ids = self._ids, []
        return ids

    def _wait_s(self, elapsed_s: float) -> float:
        """Return how long later rows may wait, in seconds."""
        if not self._is_audio:
            least_s, longest_s = SCRIPT_WAITS_S
            return min(longest_s, max(least_s, 2 * elapsed_s)) if self._speaks else min(MAX_WAIT_S, elapsed_s)
        if self._frame_rate <= 0:
            return 0.0
        lead_s = self._tracker.num_frames / self._frame_rate - elapsed_s - LEAST_LEAD_S
        return min(MAX_WAIT_S, WAIT_SHARE * max(lead_s, 0.0))
