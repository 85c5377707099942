"""Rows of a reply that wait to be sent to the front end."""

import time
from collections.abc import Callable

from stretto.engine.reply_rules import ReplyState
from stretto.streams.layout import Segment

MAX_WAIT_S = 0.2
WAIT_SHARE = 0.25  # share of the audio generated ahead of playback
SCRIPT_WAITS_S = 0.1, 0.5  # minimum and maximum wait of text that will be spoken
LEAST_LEAD_S = 0.25  # audio ahead of playback up to which each row is sent immediately, as needed by the first chunks


class OutgoingRows:
    """Rows of one reply that have not been sent to the front end yet, in the format that `read_rows` parses.

    Rows are sent in groups, because each message costs CPU time in both processes. Playback is assumed to start with
    the first row. Audio rows are held back for at most a fraction of the audio still to be played. Text rows are held
    back for at most as long as the text has taken so far, or twice as long if audio follows, because the audio begins
    only after the complete text.
    """

    def __init__(self, reply: ReplyState, clock: Callable[[], float] = time.monotonic) -> None:
        self._reply = reply
        self._clock = clock
        self._frame_rate = reply.rules.family.frame_rate
        self._speaks = Segment.AUDIO in reply.task.segments
        self._ids: list[int] = []
        self._is_audio: bool | None = None
        self._began_s = self._due_s = 0.0  # start of the text or audio, and due time of its next rows

    def push(self, rows: list[int], is_last: bool) -> list[int]:
        """Add rows that the reply's state already includes; return the rows to send now: all waiting rows or none."""
        now = self._clock()
        is_audio = self._reply.audio_start >= 0 or self._reply.num_codes > 0
        if is_audio is not self._is_audio:
            self._is_audio = is_audio
            self._began_s = now
            self._due_s = now
        self._ids += rows
        if now < self._due_s and not is_last:
            return []
        self._due_s = now + self._wait_s(now - self._began_s)
        return self.pop_rows()

    def pop_rows(self) -> list[int]:
        """Remove and return all waiting rows."""
        ids = self._ids
        self._ids = []
        return ids

    def _wait_s(self, elapsed_s: float) -> float:
        if not self._is_audio:
            least_s, longest_s = SCRIPT_WAITS_S
            return min(longest_s, max(least_s, 2 * elapsed_s)) if self._speaks else min(MAX_WAIT_S, elapsed_s)
        if self._frame_rate <= 0:
            return 0.0
        lead_s = self._reply.num_frames / self._frame_rate - elapsed_s - LEAST_LEAD_S
        return min(MAX_WAIT_S, WAIT_SHARE * max(lead_s, 0.0))
