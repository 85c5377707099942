"""Heartbeats of front-end processes."""

import os
import time
from contextlib import suppress

from stretto.heartbeat import BEATS, READY_BEAT
from stretto.launcher.faults import PendingFault
from stretto.launcher.processes import is_stopped
from stretto.launcher.timeouts import slowness

POLL_S = 1.0
MAX_MISSED, MAX_MISSED_AT_START = 30, 120  # polls without a heartbeat
MAX_UNREADY = 5  # heartbeats without readiness, for example because the server was busy


class Pulse:
    """Health of a front-end process, judged by the heartbeats of its event loop and by /proc.

    Missed heartbeats are counted in polls, not in elapsed time. A launcher that was itself stopped therefore finds no
    fault, because the heartbeats sent in the meantime are still in the pipe.

    Attributes:
        writing: Write end of the heartbeat pipe; -1 once a process has inherited it.
        has_beaten: True once the process has sent a heartbeat.
        is_ready: True if one of the last MAX_UNREADY heartbeats has reported readiness.
    """

    def __init__(self, name: str) -> None:
        """Create the health record of the process that is called `name` in messages."""
        self._name, self._pid = name, 0
        self._num_starts = 0
        self._reading, self.writing = -1, -1
        self._pending = PendingFault()

    def prepare(self) -> dict[str, str]:
        """Create the pipe for the next process; return the environment variable for its write end."""
        self.close()
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return {BEATS: str(self.writing)}

    def begin(self, pid: int) -> None:
        """Watch the process `pid`, which has inherited the pipe."""
        os.close(self.writing)
        self._pid, self.writing = pid, -1
        self._num_starts += 1
        self._polled_s, self._num_missed, self.has_beaten = time.monotonic(), 0, False
        self._beats = b""
        self._pending = PendingFault()

    def fault(self) -> str:
        """Poll the process and return a description of its fault; empty if there is none."""
        self._poll()
        if is_stopped(self._pid):
            return f"the {self._name} (pid {self._pid}) is stopped"
        if self._num_missed >= (MAX_MISSED if self.has_beaten else MAX_MISSED_AT_START) * slowness():
            return f"the {self._name} (pid {self._pid}) does not answer"
        return f"the {self._name} is being restarted" if self._num_starts > 1 and not self.has_beaten else ""

    @property
    def is_ready(self) -> bool:
        return READY_BEAT in self._beats

    def is_hung(self) -> bool:
        """Return True if the process must be replaced: stopped for PROOF_S, or no heartbeat for too long."""
        fault = self.fault()
        self._pending.update(fault if fault.endswith("is stopped") else "")
        return self._pending.is_proven or fault.endswith("does not answer")

    def close(self) -> None:
        """Close the pipe."""
        for descriptor in (self._reading, self.writing):
            if descriptor >= 0:
                os.close(descriptor)
        self._reading = self.writing = -1

    def _poll(self) -> None:
        if time.monotonic() - self._polled_s >= POLL_S:
            self._polled_s = time.monotonic()
            self._num_missed += 1
        with suppress(BlockingIOError):
            if self._reading >= 0 and (came := os.read(self._reading, 4096)):
                self._num_missed, self.has_beaten = 0, True
                self._beats = (self._beats + came)[-MAX_UNREADY:]
