"""Input that arrives while a reply is generated: streamed text, and live audio as codes."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from stretto.engine.client import EngineClient
from stretto.engine.reply_rules import ReplyState
from stretto.engine.tracks import Track
from stretto.errors import Closing, InvalidRequest, StrettoError

PATIENCE_S = 30.0  # between two writes; a blocked reply occupies KV blocks
LONGEST_S = 600.0  # from the start to the last write; also limits clients that keep writing empty text


class TextFeed:
    """Streamed text of one reply, whose ids are sent to the engine in order.

    The reply is aborted if nothing is written for `patience_s`, or if the text is not complete after `longest_s`.

    Args:
        track: Text sent with the prompt, to which further ids are appended; None for live audio.
        room: Maximum number of further ids, not counting the end id.
        patience_s, longest_s: Times in seconds; infinity for no limit.
    """

    field = what = "text"

    def __init__(
        self,
        engine: EngineClient,
        request_id: str,
        track: Track | None,
        room: int,
        patience_s: float = PATIENCE_S,
        longest_s: float = LONGEST_S,
    ):
        self._engine = engine
        self._request_id = request_id
        self.track = track
        self._room = room
        self._patience_s = patience_s
        self._begun_s = time.monotonic()
        self.longest_s = longest_s
        self._waiting = np.zeros(0, np.int32)
        self._is_complete = self._is_last_sent = self._has_begun = self._has_ended = False
        self._failure: StrettoError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    @property
    def room(self) -> int:
        """Maximum number of further ids, not counting the end id; 0 once the text or the reply has ended."""
        return 0 if self._is_complete else self._room

    @property
    def is_complete(self) -> bool:
        """True once the text is complete, or the reply has ended."""
        return self._is_complete

    def write(self, ids: Sequence[int], is_last: bool) -> None:
        """Append ids (with the end id if `is_last`); raise InvalidRequest if the text has ended or becomes too long."""
        if self._is_complete:
            raise InvalidRequest("text", "no more text, because it is complete", f"{len(ids)} tokens")
        if len(ids) - is_last > self._room:
            raise InvalidRequest("text", f"at most {self._room} more tokens", f"{len(ids) - is_last} tokens")
        self._append(ids, is_last)

    def _append(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> None:
        self._room -= len(ids)
        if self.track is not None:
            self.track.extend(ids, is_last)
        self._waiting = np.concatenate([self._waiting, np.asarray(ids, np.int32)])
        self._is_complete = is_last
        self._wait()
        if self._has_begun:
            self._send()

    def begin(self) -> None:
        """Send the ids written so far, once the engine has accepted the request."""
        if not self._has_begun:
            self._has_begun = True
            self._send()

    def is_awaited(self, num_rows: int, reply: ReplyState | None = None) -> bool:
        """Return True if a reply of `num_rows` rows in the state `reply` can continue only when more text arrives."""
        return self.track is not None and self.track.first_row + num_rows > self.track.num_known(reply)

    def check(self) -> None:
        """Raise the error that aborted the reply, if any, for example because the input stalled."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Stop the timer, because the reply has ended."""
        self._is_complete = self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _left_s(self) -> float:
        return self._begun_s + self.longest_s - time.monotonic()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        patience_s = min(self._patience_s, self._left_s)
        if not self._is_complete and math.isfinite(patience_s):
            self._timer = asyncio.get_running_loop().call_later(patience_s, self._give_up)

    def _give_up(self) -> None:
        if self._left_s <= 0:
            expected = f"the complete {self.what} within {self.longest_s:g} s of its start"
            got = "only a part"
        else:
            expected = f"more {self.what}, or its end, within {self._patience_s:g} s"
            got = "none"
        self.abort(InvalidRequest(self.field, expected, got))

    def abort(self, failure: StrettoError) -> None:
        """Abort the reply, and let `check` raise `failure`."""
        self._failure = self._failure or failure
        self._engine.abort(self._request_id)

    def _send(self) -> None:
        ids = self._waiting
        self._waiting = np.zeros(0, np.int32)
        if not self._engine.has(self._request_id) or self._is_last_sent or not (len(ids) or self._is_complete):
            return
        self._is_last_sent = self._is_complete
        self._engine.append(self._request_id, ids, self._is_last_sent)


IDLE_S = 60.0  # between two parts of a live session
MAX_LAG_S = 5.0


class FrameFeed(TextFeed):
    """Live audio of one session, as codes of frames that the reply reads row by row.

    Frames are due when they arrive, but no faster than they are played. A file that arrives all at once is therefore
    not late. The session is aborted if the reply lags by more than MAX_LAG_S.

    Args:
        room: Maximum number of frames. The reply ends after the last one.
        note_tick: Function that is called for each frame that is read, with its lateness and `frame_s`, in seconds.
    """

    field = "pcm_in"
    what = "audio"

    def __init__(
        self,
        engine: EngineClient,
        request_id: str,
        width: int,
        room: int,
        frame_s: float,
        note_tick: Callable[[float, float], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(engine, request_id, None, room * width, IDLE_S, room * frame_s + IDLE_S)
        self._width = width
        self._frame_s = frame_s
        self._note_tick = note_tick
        self._clock = clock
        self._due: deque[float] = deque()  # due times of the frames that the reply has not read
        self._last_due_s = 0.0
        self.num_frames = 0
        self.seconds = 0.0
        self._moved = asyncio.Event()

    def write_frames(self, frames: np.ndarray, is_last: bool, seconds: float) -> None:
        """Append frames, int32 [n, K]; those beyond the maximum are dropped, because the reply ends before them.

        A call without frames does not restart the timer, unless it completes the audio.

        Args:
            seconds: Duration of the whole input so far, in seconds.
        """
        self.check()
        is_input = len(frames) > 0 or is_last
        frames = frames[: self._room // self._width]
        now = self._clock()
        for _ in range(len(frames)):
            self._last_due_s = max(now, self._last_due_s + self._frame_s)
            self._due.append(self._last_due_s)
        self.num_frames = self.num_frames + len(frames)
        self.seconds = seconds
        if self._due and now - self._due[0] > MAX_LAG_S:
            behind_s = now - self._due[0]
            self.abort(
                Closing(f"the session is {behind_s:.1f} s behind its audio, of at most {MAX_LAG_S:g} s; try again")
            )
        self.check()
        if is_input:
            self._append(frames.reshape(-1), is_last)

    def note_rows(self, num_rows: int) -> None:
        """Record that the reply has `num_rows` rows, the first of which precedes the first frame."""
        now = self._clock()
        while len(self._due) > max(0, self.num_frames - (num_rows - 1)):
            self._note_tick(max(0.0, now - self._due.popleft()), self._frame_s)
        self._moved.set()

    @property
    def lag_frames(self) -> int:
        """Number of frames that have arrived but that the reply has not read."""
        return len(self._due)

    async def wait_until_read(self, max_ahead: int) -> int:
        """Wait until at most `max_ahead` frames are unread or the reply ends, and return how many are unread."""
        while len(self._due) > max_ahead and self._failure is None and not self._has_ended:
            self._moved.clear()
            await self._moved.wait()
        self.check()
        return len(self._due)

    def is_awaited(self, num_rows: int, reply: ReplyState | None = None) -> bool:
        return not self._is_complete and num_rows > self.num_frames

    def abort(self, failure: StrettoError) -> None:
        super().abort(failure)
        self._moved.set()

    def end(self) -> None:
        super().end()
        self._moved.set()


class _NoText:
    """Null object used instead of a `TextFeed` for replies without streamed text."""

    def begin(self) -> None: ...

    def check(self) -> None: ...

    def end(self) -> None: ...


NO_TEXT = _NoText()
