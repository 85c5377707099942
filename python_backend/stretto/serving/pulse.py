"""Health of a front-end process, the proxy or the gateway."""

import os
import time
from contextlib import suppress

from stretto.serving.faults import Doubt
from stretto.serving.patience import slowness
from stretto.serving.processes import is_stopped
from stretto.serving.proxy.config import BEATS

POLL_S = 1.0
MAX_MISSED, MAX_MISSED_AT_START = 30, 120  # polls without a beat, on an idle machine


class Pulse:
    """Health of a front-end process, from its event loop's heartbeats and from /proc.

    Missed heartbeats are counted per poll, not by elapsed time: a launcher that was itself stopped finds the heartbeats
    in the pipe.

    Attributes:
        writing: Write end of the heartbeat pipe, until the process has inherited it.
        has_beaten: True once the process has sent a heartbeat.
    """

    def __init__(self, name: str) -> None:
        """Create the health state of the process called `name` in messages."""
        self._name, self._pid = name, 0
        self._num_starts = 0
        self._reading, self.writing = -1, -1
        self._doubt = Doubt()

    def prepare(self) -> dict[str, str]:
        """Create the next process's pipe; return the environment variable that names its write end."""
        self.close()
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return {BEATS: str(self.writing)}

    def begin(self, pid: int) -> None:
        """Follow the process that inherited the pipe."""
        os.close(self.writing)
        self._pid, self.writing = pid, -1
        self._num_starts += 1
        self._polled_s, self._num_missed, self.has_beaten = time.monotonic(), 0, False
        self._doubt = Doubt()

    def fault(self) -> str:
        """Return a description of the process's fault; empty if none is known."""
        self._poll()
        if is_stopped(self._pid):
            return f"the {self._name} (pid {self._pid}) is stopped"
        if self._num_missed >= (MAX_MISSED if self.has_beaten else MAX_MISSED_AT_START) * slowness():
            return f"the {self._name} (pid {self._pid}) does not answer"
        return f"the {self._name} is being started again" if self._num_starts > 1 and not self.has_beaten else ""

    def is_hung(self) -> bool:
        """Return True if the process must be replaced: stopped for PROOF_S, or without heartbeats for too long."""
        fault = self.fault()
        self._doubt.is_news(fault if fault.endswith("is stopped") else "")
        return self._doubt.is_proven or fault.endswith("does not answer")

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
            if self._reading >= 0 and os.read(self._reading, 4096):
                self._num_missed, self.has_beaten = 0, True
