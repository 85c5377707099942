"""Queue for parts of live audio, and the process that encodes them.

All parts that have arrived, from any session, form one job, so their frames are encoded as one batch. Parts that arrive
during a job form the next job, so no frame waits for others to arrive. Every part is answered exactly once.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stretto.errors import Closing, InvalidRequest, Overloaded
from stretto.family.base import Family, Task
from stretto.family.live_audio import LiveTemplate
from stretto.family.plugin import plugin
from stretto.family.prompting import Piece, PromptRows, Template
from stretto.machine.worker_process import WorkerProcess
from stretto.records.prompt import AudioPart
from stretto_contract.limits import FairLimit
from stretto_contract.schema import OptionsRecord

logger = logging.getLogger(__name__)
MAX_WAIT_S = 60.0  # maximum wait for the answer to one job, after which the process is replaced
MIN_RATE_HZ = 8_000
MAX_RATE_HZ = 192_000
MAX_PART_S = 30.0
MAX_PEAK = 2.0  # as for recordings
MAX_WAITING = 8  # parts of one session
MAX_STREAMS = 256
MAX_BYTES = 128 << 20  # maximum total size of waiting samples
POLL_S = 1.0  # interval at which sessions that have ended are detected
LOST = "the process that encodes live audio has ended; try again"
Answer = Callable[[AudioPart], None]


class EncoderProcess(Protocol):
    """Interface of WorkerProcess that this module uses."""

    memory: int

    def ask(self, job: dict[str, Any], max_wait_s: float) -> dict[str, Any] | None: ...

    def restart(self) -> None: ...

    def release_memory(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Waiting:
    """Part that has been accepted but not answered."""

    number: int
    pcm: np.ndarray
    is_last: bool
    answer: Answer
    frames: list[np.ndarray] = field(default_factory=list)


@dataclass
class _Stream:
    """Session that has sent audio.

    Attributes:
        is_open: Returns False once the session has ended.
        is_begun: True if the first waiting part has been sent to the process.
    """

    host: str
    rate: int
    is_open: Callable[[], bool]
    next_part: int = 0
    num_samples: int = 0
    is_complete: bool = False
    is_begun: bool = False
    waiting: deque[_Waiting] = field(default_factory=deque)


class Hearing:
    """Live-audio streams by session name, and the thread that runs the encoding process.

    Attributes:
        num_jobs: Number of jobs that encoded frames.
        num_encoded: Number of streams in those jobs; divided by `num_jobs`, the mean batch size.
    """

    def __init__(self, process: EncoderProcess, num_codebooks: int):
        self._process = process
        self._width = num_codebooks
        self._streams: dict[str, _Stream] = {}
        self._closed: list[str] = []
        self._places = FairLimit(MAX_STREAMS)
        self._bytes = FairLimit(MAX_BYTES)
        self._changed = threading.Condition()
        self._has_ready = self._is_closed = False  # `_has_ready`: a stream has frames left in the process
        self.num_jobs = self.num_encoded = 0
        self._thread = threading.Thread(target=self._run, name="hearing", daemon=True)
        self._thread.start()

    def submit(
        self,
        session: str,
        number: int,
        pcm: np.ndarray,
        rate: int | None,
        is_last: bool,
        host: str,
        answer: Answer,
        is_open: Callable[[], bool],
    ) -> None:
        """Accept the next part of a session's audio, entirely or not at all.

        Args:
            number: Number of the part, from 0.
            pcm: Samples, float32 [n]; the queue keeps a reference to them.
            rate: Sample rate in Hz; None only if the part has no samples, and is the last one or not the first.
            answer: Called once, on another thread, with the part's frames or with the reason for losing the session.
            is_open: Returns False once the session has ended; its audio is then dropped.

        Raises:
            InvalidRequest: The part is out of order, or its samples or their rate are invalid. It has no effect.
            Overloaded: Too many sessions or samples are waiting. The part has no effect.
            Closing: The server is stopping.
        """
        with self._changed:
            if self._is_closed:
                raise Closing("server is stopping")
            stream = self._streams.get(session)
            if stream is None and number > 0:  # the process has ended, or the session is complete
                answer(AudioPart(session, number, b"", is_last, lost=LOST))
                return
            check_part(pcm, rate, None if stream is None else stream.rate)
            if stream is None:
                if rate is None and not is_last:
                    raise InvalidRequest("sample_rate", "the rate of the session's audio in Hz", "none")
                if not self._places.has_free(host):
                    raise Overloaded(f"{len(self._streams)} sessions are open, try again")
                stream = _Stream(host, rate or MIN_RATE_HZ, is_open)
            self._check_order(stream, number)
            if not self._bytes.has_free(stream.host, pcm.nbytes) or len(stream.waiting) >= MAX_WAITING:
                raise Overloaded(f"{len(stream.waiting)} parts of this session are waiting, try again")
            if session not in self._streams:
                self._streams[session] = stream
                self._places.acquire(host)
            self._bytes.acquire(stream.host, pcm.nbytes)
            stream.waiting.append(_Waiting(number, pcm, is_last, answer))
            stream.next_part = number + 1
            stream.is_complete = is_last
            self._changed.notify()

    def _check_order(self, stream: _Stream, number: int) -> None:
        if stream.is_complete:
            raise InvalidRequest("session", "no further part, as the audio is complete", f"part {number}")
        if number != stream.next_part:
            raise InvalidRequest("session.part", f"{stream.next_part}, the number of the next part", number)

    def close(self) -> None:
        """Answer all parts as lost, and end the process."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        self._lose_all()
        self._process.close()

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=POLL_S if self._streams else None)
                if self._is_closed:
                    return
                dropped = self._drop_ended()
                closed = self._closed
                self._closed = []
                begun = [(name, stream.waiting[0]) for name, stream in self._streams.items() if stream.waiting]
                begun = [(name, waiting) for name, waiting in begun if not self._streams[name].is_begun]
                for name, _ in begun:
                    self._streams[name].is_begun = True
                has_job = self._has_ready or bool(begun) or bool(closed)
            self._lose(dropped)
            try:
                if has_job:
                    self._encode(begun, closed)
            except Exception:  # for example, a full disk; the thread must survive, because all sessions depend on it
                logger.exception("live audio could not be encoded")
                self._lose_all()
                self._replace_process()

    def _has_work(self) -> bool:
        fresh = any(stream.waiting and not stream.is_begun for stream in self._streams.values())
        return self._is_closed or self._has_ready or bool(self._closed) or fresh

    def _drop_ended(self) -> list[tuple[str, _Waiting]]:
        """Remove the streams of sessions that have ended, and return their parts."""
        ended = [name for name, stream in self._streams.items() if not stream.is_open()]
        self._closed += ended
        return [(name, waiting) for name in ended for waiting in self._remove(name)]

    def _replace_process(self) -> None:
        try:
            self._process.restart()
        except OSError:  # the next job tries again
            logger.exception("the hearing process could not be started")

    def _encode(self, begun: list[tuple[str, _Waiting]], closed: list[str]) -> None:
        """Run one job with the parts in `begun`, and answer the parts that are done."""
        rates = {name: self._streams[name].rate for name, _ in begun}
        job = {
            "parts": [[name, len(waiting.pcm), rates[name], waiting.is_last] for name, waiting in begun],
            "closed": closed,
        }
        memory = self._process.memory
        at = 0
        try:
            for _, waiting in begun:
                data = waiting.pcm.data.cast("B")
                while data:  # the kernel may write fewer bytes than requested
                    num_written = os.pwrite(memory, data, at)
                    data = data[num_written:]
                    at = at + num_written
            encoding = self._process.ask(job, MAX_WAIT_S)
            if encoding is None:
                logger.warning("the hearing process ended; its sessions end")
                self._lose_all()
                return
            sizes = [num_frames * self._width for _, num_frames, _ in encoding["frames"]]
            ids = np.empty(sum(sizes), np.int32)
            if ids.size and os.preadv(memory, [ids.data], 0) != ids.nbytes:
                raise OSError("fewer frames than announced")
        finally:
            self._process.release_memory()
        encoded = np.split(ids, np.cumsum(sizes)[:-1]) if sizes else []
        self._has_ready = not all(is_done for _, _, is_done in encoding["frames"])
        self.num_encoded += sum(size > 0 for size in sizes)
        self.num_jobs += any(sizes)
        for (name, _, is_done), frames in zip(encoding["frames"], encoded, strict=True):
            self._take(name, frames, is_done)

    def _take(self, name: str, ids: np.ndarray, is_done: bool) -> None:
        """Add encoded frames to the part being encoded; answer the part if all of it is encoded."""
        with self._changed:
            stream = self._streams.get(name)
            if stream is None or not stream.is_begun:
                return
            stream.waiting[0].frames.append(ids)
            if not is_done:
                return
            waiting = stream.waiting.popleft()
            stream.is_begun = False
            self._bytes.release(stream.host, waiting.pcm.nbytes)
            stream.num_samples += len(waiting.pcm)
            seconds = stream.num_samples / stream.rate
            if waiting.is_last:
                self._remove(name)
        frames = b"".join(frame.tobytes() for frame in waiting.frames)
        self._answer(waiting, AudioPart(name, waiting.number, frames, waiting.is_last, seconds))

    def _answer(self, waiting: _Waiting, audio: AudioPart) -> None:
        try:
            waiting.answer(audio)
        except Exception:  # an error in the caller's function; the thread must answer the other parts
            logger.exception("a part of live audio could not be answered")

    def _lose_all(self) -> None:
        with self._changed:
            lost = [(name, waiting) for name in list(self._streams) for waiting in self._remove(name)]
            self._has_ready = False
            self._closed = []
        self._lose(lost)

    def _lose(self, parts: list[tuple[str, _Waiting]]) -> None:
        for name, waiting in parts:
            self._answer(waiting, AudioPart(name, waiting.number, b"", waiting.is_last, lost=LOST))

    def _remove(self, name: str) -> deque[_Waiting]:
        stream = self._streams.pop(name)
        self._places.release(stream.host)
        for waiting in stream.waiting:
            self._bytes.release(stream.host, waiting.pcm.nbytes)
        return stream.waiting


def open_hearing(family: Family, checkpoint: Path, device: str) -> Hearing | None:
    """Start the hearing process for a checkpoint; return None if its family has no live audio input."""
    family_plugin = plugin(family.name)
    if family_plugin is None or family_plugin.open_live_input is None:
        return None
    process = WorkerProcess("stretto.preprocessing.hearing_worker", str(checkpoint), device, niceness=0)
    return Hearing(process, family.num_codebooks)


def begin_session(template: Template, task: Task, pieces: tuple[Piece, ...], voice: str | None) -> PromptRows:
    """Return the prompt of a session whose audio follows in parts."""
    if not isinstance(template, LiveTemplate):
        raise InvalidRequest("options.live", "no value (this model reads whole recordings)", "true")
    return template.write_live(task, pieces, voice)


def read_session_options(options: OptionsRecord, family: Family) -> tuple[float, bool, bool]:
    """Return `resume_s`, `with_pauses` and `with_progress` of `Delivery`."""
    resume_s = options.get("resume_s", 0.0)
    if resume_s and not options.get("live"):
        raise InvalidRequest("options.resume_s", "no value (only live sessions can be resumed)", resume_s)
    if resume_s and options.get("words") and family.layout.codebook_streams:
        expected = "no value with words (word times need all samples of the reply in one connection)"
        raise InvalidRequest("options.resume_s", expected, resume_s)
    with_pauses = options.get("pauses", False)
    if with_pauses and not family.pauses_s:
        raise InvalidRequest("options.pauses", "no value (this model predicts no pauses)", "true")
    with_progress = options.get("progress", False)
    if with_progress and (not options.get("live") or family.layout.codebook_streams):
        raise InvalidRequest("options.progress", "no value (only live transcripts have progress)", "true")
    return float(resume_s), with_pauses, with_progress


def check_part(pcm: np.ndarray, rate: int | None, begun_rate: int | None) -> None:
    """Raise InvalidRequest if the samples of a part, or their rate, are invalid; rates are in Hz.

    Args:
        rate: None if there are no samples.
        begun_rate: Sample rate of the session's first part; None if this is the first part.
    """
    if pcm.ndim != 1 or pcm.dtype != np.float32:
        raise InvalidRequest("pcm_in", "mono samples [n] float32", f"{list(pcm.shape)} {pcm.dtype}")
    if rate is None and len(pcm):
        raise InvalidRequest("sample_rate", "the rate of pcm_in in Hz", "none")
    if rate is not None and not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
        raise InvalidRequest("sample_rate", f"a rate in [{MIN_RATE_HZ}, {MAX_RATE_HZ}] Hz", rate)
    if rate is not None and begun_rate is not None and rate != begun_rate:
        raise InvalidRequest("sample_rate", f"{begun_rate}, as the session began", rate)
    if rate is not None and len(pcm) > MAX_PART_S * rate:
        raise InvalidRequest("pcm_in", f"at most {MAX_PART_S:g} s in a part", f"{len(pcm) / rate:.1f} s")
    if not np.isfinite(pcm).all():
        raise InvalidRequest("pcm_in", "finite samples", "NaN or infinity")
    peak = float(np.abs(pcm).max(initial=0.0))
    if peak > MAX_PEAK:
        raise InvalidRequest("pcm_in", "samples in [-1, 1]", f"a peak of {peak:g}")
