"""Heartbeats of front-end processes."""

import os
import socket
import time
from contextlib import suppress

from stretto.launcher.faults import PendingFault
from stretto.launcher.processes import is_stopped
from stretto.launcher.timeouts import slowness
from stretto_contract.heartbeat import BEATS, KEPT_LISTENER, LISTENER, READY_BEAT

POLL_S = 1.0
# polls without a heartbeat
MAX_MISSED = 30
MAX_MISSED_AT_START = 120
MAX_UNREADY = 5  # heartbeats without readiness, for example because the server was busy


class Pulse:
    """Health of a front-end process, judged by the heartbeats of its event loop and by /proc.

    Missed heartbeats are counted in polls, not in elapsed time. A launcher that was itself stopped therefore finds no
    fault, because the heartbeats sent in the meantime are still in the socket.

    Attributes:
        pid: Pid of the process; 0 until it is known.
        has_beaten: True once the process has sent a heartbeat.
        is_ready: True if one of the last MAX_UNREADY heartbeats has reported readiness.
    """

    def __init__(self, name: str) -> None:
        """Create the health record of the process that is called `name` in messages."""
        self._name = name
        self.pid = 0
        self._num_starts = 0
        self.has_beaten = False
        self._channel: tuple[socket.socket, ...] = ()  # this process's end and, until it has been inherited, the other
        self._listener: int | None = None
        self._pending = PendingFault()

    def prepare(self) -> dict[str, str]:
        """Create the socket of the next process; return the environment variables for its descriptors.

        A listening socket that the last process has left is passed on. If that process never worked, the socket is
        closed, so that clients are refused at once.
        """
        self._poll()
        self._close_channel()
        if self._num_starts and not self.has_beaten:
            self.forget_listener()
        self._channel = socket.socketpair()
        for end in self._channel:
            end.setblocking(False)
        kept = {} if self._listener is None else {KEPT_LISTENER: str(self._listener)}
        return {BEATS: str(self._channel[1].fileno())} | kept

    @property
    def inherited(self) -> list[int]:
        """File descriptors of the heartbeat and, if the last process left it, of the listening socket."""
        return [self._channel[1].fileno(), *([] if self._listener is None else [self._listener])]

    def begin(self, pid: int) -> None:
        """Watch the process `pid`, which has inherited the socket."""
        self._channel[1].close()
        self.pid = pid
        self._num_starts += 1
        self._polled_s = time.monotonic()
        self._num_missed = 0
        self.has_beaten = False
        self._beats = b""
        self._pending = PendingFault()

    def fault(self) -> str:
        """Poll the process and return a description of its fault; empty if there is none."""
        self._poll()
        if is_stopped(self.pid):
            return f"the {self._name} (pid {self.pid}) is stopped"
        if self._num_missed >= (MAX_MISSED if self.has_beaten else MAX_MISSED_AT_START) * slowness():
            return f"the {self._name} (pid {self.pid}) does not answer"
        return f"the {self._name} is being restarted" if self._num_starts > 1 and not self.has_beaten else ""

    @property
    def is_ready(self) -> bool:
        return READY_BEAT in self._beats

    def is_hung(self) -> bool:
        """Return True if the process must be replaced: stopped for PROOF_S, or no heartbeat for too long."""
        fault = self.fault()
        self._pending.update(fault if fault.endswith("is stopped") else "")
        return self._pending.is_proven or fault.endswith("does not answer")

    def forget_listener(self) -> None:
        """Close the listening socket that the process has left, if any."""
        if self._listener is not None:
            os.close(self._listener)
            self._listener = None

    def close(self) -> None:
        self._close_channel()
        self.forget_listener()

    def _close_channel(self) -> None:
        for end in self._channel:
            end.close()
        self._channel = ()

    def _poll(self) -> None:
        if not self._channel:
            return
        if time.monotonic() - self._polled_s >= POLL_S:
            self._polled_s = time.monotonic()
            self._num_missed += 1
        with suppress(OSError):  # no more has come, or the process has ended
            while self._read(self._channel[0]):
                pass

    def _read(self, channel: socket.socket) -> bool:
        """Read heartbeats, or a listening socket; return False at the end of the process's output."""
        received, listeners, _, _ = socket.recv_fds(channel, 4096, 1)
        for listener in listeners:
            self.forget_listener()
            self._listener = listener
        if beats := received.replace(LISTENER, b""):
            self._num_missed = 0
            self.has_beaten = True
            self._beats = (self._beats + beats)[-MAX_UNREADY:]
        return bool(received)
