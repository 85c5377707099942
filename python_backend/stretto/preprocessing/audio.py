"""Conversion of a request's audio (a file or samples) to mono samples at the sample rate of the audio encoder.

Every audio process imports this module at start-up, so only numpy and two audio libraries are imported here. Requests
with audio wait in queues, one for short recordings, one for long ones and one for images. Each queue is fair among
client hosts.
"""

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import soxr

from stretto.errors import Closing, InvalidRequest, Overloaded
from stretto.preprocessing.decoders import MAX_RATE_HZ, MIN_RATE_HZ, READABLE, decode
from stretto.preprocessing.file_size import check_file_size
from stretto.preprocessing.images import read_image
from stretto_contract.limits import FairLimit, Rotation

MAX_FILES = 16
MAX_REQUEST_BYTES = 64_000_000  # audio and images in all inputs of a request together
MAX_PEAK = 2.0  # resampled or lossy audio slightly exceeds 1; unscaled integers far exceed this limit


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Audio input of a request, or an image.

    Attributes:
        data: Contents of an audio or image file; if `is_file` is False, mono samples, float32 [n].
        sample_rate: Sample rate in Hz; None for a file.
        is_image: True for an image file, which is read as colours, uint8 [height, width, 3] (`images.read_image`).
    """

    field: str
    data: bytes | memoryview | np.ndarray
    is_file: bool = True
    sample_rate: int | None = None
    is_image: bool = False


AudioReader = Callable[[Recording, float, int], np.ndarray]
"""Function with the contract of `read_recording`."""


def read_recording(recording: Recording, max_s: float, target_rate: int) -> np.ndarray:
    """Decode, check and resample a recording in this process: mono samples, float32 [n] (an `AudioReader`)."""
    if recording.is_image:
        return read_image(bytes(recording.data), recording.field)
    if recording.is_file:
        pcm, sample_rate = read_file(bytes(recording.data), max_s, recording.field)
        return resample(pcm, sample_rate, target_rate)
    assert isinstance(recording.data, np.ndarray), recording.field
    return read_samples(recording.data, recording.sample_rate, max_s, target_rate)


def read_samples(pcm: np.ndarray, sample_rate: int | None, max_s: float, target_rate: int) -> np.ndarray:
    """Check mono samples, float32 [n], and resample them to `target_rate`."""
    return resample(pcm, check_pcm(pcm, sample_rate, max_s), target_rate)


def read_file(data: bytes, max_s: float, field: str = "audio") -> tuple[np.ndarray, int]:
    """Decode at most `max_s` of an audio file, even if the header declares more, after checking its size.

    If the file is too large, too long, or cannot be decoded, raise InvalidRequest.

    Returns:
        Mono samples, float32 [n] in [-MAX_PEAK, MAX_PEAK], and their sample rate in Hz.
    """
    check_file_size(len(data), field, READABLE)
    pcm, rate = decode(data, max_s, field)
    if len(pcm) > int(max_s * rate):
        raise InvalidRequest(field, f"at most {max_s:g} s", "more")
    _check_samples(field, pcm)
    return pcm, rate


def check_pcm(pcm: np.ndarray, sample_rate: int | None, max_s: float) -> int:
    """Check mono samples, float32 [n], and return their sample rate in Hz."""
    if sample_rate is None:
        raise InvalidRequest("sample_rate", "the rate of pcm_in in Hz", "none")
    if not MIN_RATE_HZ <= sample_rate <= MAX_RATE_HZ:
        raise InvalidRequest("sample_rate", f"a rate in [{MIN_RATE_HZ}, {MAX_RATE_HZ}] Hz", sample_rate)
    if pcm.ndim != 1 or pcm.dtype != np.float32:
        raise InvalidRequest("pcm_in", "mono samples [n] float32", f"{list(pcm.shape)} {pcm.dtype}")
    if len(pcm) > int(max_s * sample_rate):
        raise InvalidRequest("pcm_in", f"at most {max_s:g} s", f"{len(pcm) / sample_rate:.1f} s")
    _check_samples("pcm_in", pcm)
    return sample_rate


def resample(pcm: np.ndarray, sample_rate: int, target_rate: int) -> np.ndarray:
    """Resample mono samples, float32 [n], with soxr to ceil(n * target_rate / sample_rate) samples.

    The number is that of librosa and torchaudio. A zero is appended if soxr returns one sample fewer.
    """
    if sample_rate == target_rate:
        return pcm
    resampled = soxr.resample(pcm, sample_rate, target_rate)
    size = -(-len(pcm) * target_rate // sample_rate)
    return np.pad(resampled[:size], (0, max(0, size - len(resampled))))


def _check_samples(field: str, pcm: np.ndarray) -> None:
    if not len(pcm):
        raise InvalidRequest(field, "at least one sample", "none")
    if not np.isfinite(pcm).all():
        raise InvalidRequest(field, "finite samples", "NaN or infinity")
    peak = float(np.abs(pcm).max())
    if peak > MAX_PEAK:
        raise InvalidRequest(field, "samples in [-1, 1]", f"a peak of {peak:g}")


# a click has fewer loud frames
FRAME_S = 0.02
NUM_LOUDEST = 5
VOICE_DB = -75.0  # speech 50 dB below its usual level is louder; the noise of 16-bit samples is quieter


def check_voice(pcm: np.ndarray, sample_rate: int, field: str) -> None:
    """Raise InvalidRequest if the recording of a voice to clone, float32 [n >= 1], is silent.

    Its level is that of the loudest 0.1 s (five frames of 20 ms), relative to full scale and without any constant
    offset. Zeros, offsets, clicks and the noise of a sound card are thus silence.
    """
    size = min(len(pcm), int(FRAME_S * sample_rate))
    frames = pcm[: len(pcm) // size * size].reshape(-1, size)
    loudest = np.sort(frames.var(axis=1, dtype=np.float64))[-NUM_LOUDEST:]
    level = 10 * np.log10(max(float(loudest[0]), 1e-12))
    if level < VOICE_DB:
        got = f"silence: {level:.0f} dBFS in its loudest 0.1 s, less than {VOICE_DB:.0f} dBFS"
        raise InvalidRequest(field, "a recording of a voice", got)


def check_voices(recordings: Mapping[str, np.ndarray | None], sample_rate: int) -> None:
    """Check recordings by name, float32 [n] or None (text or codes), at `sample_rate` Hz (`check_voice`)."""
    for field, pcm in recordings.items():
        if pcm is not None:
            check_voice(pcm, sample_rate, field)


Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Thread-safe queue that serves client hosts in turn, so that one host cannot delay all others."""

    def __init__(self) -> None:
        self._waiting = Rotation[Item]()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, host: str, item: Item) -> None:
        with self._changed:
            self._waiting.put(host, item)
            self._changed.notify()

    def get(self) -> Item | None:
        """Remove and return the next item once there is one; return None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return self._waiting.pop()

    def close(self) -> None:
        """Close the queue: `get` returns the remaining items, then None, and no longer waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


SHORT_BYTES = 1 << 20  # requests with at most this much audio do not wait for larger ones
LONG_NICENESS = 10  # nice level of long recordings, so that active streams have priority


class ReaderProcess(Protocol):
    """Interface of AudioProcess that a lane uses."""

    read: Callable[..., np.ndarray]
    """An AudioReader that ends its job once the function `is_cancelled` returns True."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Load:
    """Amount of work in the lanes, or its limit."""

    num_bytes: int
    num_requests: int


@dataclass(frozen=True, slots=True, eq=False)
class AudioJob:
    """Request with audio in the queue of the lanes.

    Attributes:
        refuse: Called with an error if the job will not be run.
    """

    host: str
    num_bytes: int
    run: Callable[[AudioReader], None]
    refuse: Callable[[Exception], None]
    is_cancelled: Callable[[], bool]


class AudioLanes:
    """Worker threads, each with its own audio process. A submitted job is either refused or run once.

    Args:
        limit: Maximum total bytes of audio and number of requests in all lanes, whether waiting or running.
    """

    def __init__(self, open_process: Callable[[int], ReaderProcess], num_long: int, limit: Load) -> None:
        self._bytes = FairLimit(limit.num_bytes)
        self._requests = FairLimit(limit.num_requests)
        self._mutex = threading.Lock()
        self.is_closed = False
        self._short = FairQueue[AudioJob]()
        self._long = FairQueue[AudioJob]()
        self._images: FairQueue[AudioJob] | None = None  # until the first request with images
        self._open_process = open_process
        self._threads = [self._lane(self._short, 0, open_process(0))]
        self._threads += [self._lane(self._long, LONG_NICENESS, open_process(LONG_NICENESS)) for _ in range(num_long)]

    def submit(
        self,
        num_bytes: int,
        run: Callable[[AudioReader], None],
        refuse: Callable[[Exception], None],
        host: str = "",
        is_cancelled: Callable[[], bool] = lambda: False,
        has_images: bool = False,
    ) -> None:
        """Queue a job; raise Closing, or Overloaded if a limit, or the host's fair share of it, is reached.

        Args:
            num_bytes: Size in bytes of the audio that `run` keeps in memory.
            run: Called in a lane with the lane's audio reader.
            refuse: Called with an error if the job will not be run.
            is_cancelled: Returns True once the client has disconnected; the job's process then ends.
            has_images: True if the request has images, whose decoding does not delay requests with only audio.
        """
        job = AudioJob(host, num_bytes, run, refuse, is_cancelled)
        with self._mutex:
            self._check(host, num_bytes)
            self._bytes.acquire(host, num_bytes)
            self._requests.acquire(host)
            self._queue(num_bytes, has_images).put(host, job)

    def close(self) -> None:
        """Finish running jobs, refuse waiting ones, and end the processes."""
        with self._mutex:
            self.is_closed = True
        for queue, _ in self._threads:
            queue.close()
        for _, thread in self._threads:
            thread.join()

    @property
    def held(self) -> Load:
        """Total amount of audio and number of requests that are queued or running, for all hosts."""
        return Load(self._bytes.held, self._requests.held)

    def _queue(self, num_bytes: int, has_images: bool) -> FairQueue[AudioJob]:
        if not has_images:
            return self._short if num_bytes <= SHORT_BYTES else self._long
        if self._images is None:
            self._images = FairQueue[AudioJob]()
            self._threads.append(self._lane(self._images, LONG_NICENESS, None))
        return self._images

    def _check(self, host: str, num_bytes: int) -> None:
        if self.is_closed:
            raise Closing("server is stopping")
        if not self._bytes.has_free(host, num_bytes):
            held = f"{self._bytes.held} bytes are being processed, {self._bytes.held_by(host)} of them from this host"
            raise Overloaded(f"audio: {held} (limit {self._bytes.limit}); this request has {num_bytes}; try again")
        if not self._requests.has_free(host):
            num_of_host = self._requests.held_by(host)
            held = f"{self._requests.held} requests are being processed, {num_of_host} of them from this host"
            raise Overloaded(f"audio: {held} (limit {self._requests.limit}); try again")

    def _lane(
        self, queue: FairQueue[AudioJob], niceness: int, process: ReaderProcess | None
    ) -> tuple[FairQueue[AudioJob], threading.Thread]:
        """Start the thread of a lane; without a process, the thread opens one for the first job."""
        thread = threading.Thread(target=self._work, args=(queue, niceness, process), daemon=True, name="audio lane")
        thread.start()
        return queue, thread

    def _work(self, queue: FairQueue[AudioJob], niceness: int, process: ReaderProcess | None) -> None:
        while (job := queue.get()) is not None:
            host = job.host
            num_bytes = job.num_bytes
            try:
                if self.is_closed:
                    job.refuse(Closing("server is stopping"))
                else:
                    process = process or self._opened(niceness, job)
                    if process is not None:
                        job.run(partial(process.read, is_cancelled=job.is_cancelled))
            except Exception:
                traceback.print_exc()  # a bug, or the server has stopped; the lane must continue
            finally:
                del job  # release its audio before waiting for the next job
                with self._mutex:
                    self._bytes.release(host, num_bytes)
                    self._requests.release(host)
        if process is not None:
            process.close()

    def _opened(self, niceness: int, job: AudioJob) -> ReaderProcess | None:
        """Return a new process; if none can be started, refuse the job and return None."""
        try:
            return self._open_process(niceness)
        except OSError as error:
            job.refuse(error)
            return None
