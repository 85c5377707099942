"""Decoder state of open utterances, and conversion of samples to the client's output format."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import soxr
import torch
from torch import Tensor

from stretto.codecs.base import Codec, CodecSpec
from stretto.decoder.alignment import Collected, StoredBytes
from stretto.decoder.reply_end import ended_in_pause
from stretto.decoder.windows import (
    FrameWindow,
    References,
    SoundTable,
    VoiceReference,
    Windower,
    read_reference,
)
from stretto.decoding.states import State
from stretto.errors import InvalidRequest, Overloaded
from stretto.marking.marker import Marker, MarkerStream
from stretto.records.chunk import MAX_KEPT_BYTES, Chunk, Kept
from stretto.records.sampling import OutputForm

FULL_SCALE = 32_767


class Renderer:
    """Converts one utterance's samples to the client's sample rate and encoding.

    The joined chunks equal the result of resampling the whole utterance at once.
    """

    def __init__(self, form: OutputForm, spec: CodecSpec) -> None:
        self.form = form
        self.codec_rate = spec.sample_rate
        self.sample_rate = form.sample_rate or spec.sample_rate
        self._stream: soxr.ResampleStream | None = None
        if self.sample_rate != spec.sample_rate:
            self._stream = soxr.ResampleStream(spec.sample_rate, self.sample_rate, 1, dtype="float32")

    def resample(self, pcm: np.ndarray | None, is_final: bool) -> np.ndarray | None:
        """Resample the codec's samples [n] to float32 samples [m] at `sample_rate`; return None if there are none.

        The resampler holds back tens of milliseconds of audio until the final call.
        """
        if self._stream is None:
            return pcm
        if pcm is None and not is_final:
            return None
        samples = self._stream.resample_chunk(np.zeros(0, np.float32) if pcm is None else pcm, last=is_final)
        return np.clip(samples, -1.0, 1.0) if len(samples) else None  # resampling overshoots

    def encode(self, pcm: np.ndarray | None) -> np.ndarray | None:
        if pcm is None or self.form.encoding == "pcm_f32le":
            return pcm
        return np.rint(pcm * FULL_SCALE).astype(np.int16)


ANSWER_BYTES = 256  # memory of an answer besides its samples
RESUME = "session.resume"  # field named by errors that refuse a connection, but do not end the session


class ResumableAnswers:
    """Last answers of a session that can be resumed, to send again if its client has lost its connection.

    Args:
        max_bytes: Maximum memory of the answers. The oldest ones are dropped.

    Attributes:
        oldest: Number of the first chunk whose answer is stored.
        is_kept: Returns True while the session can be resumed.
    """

    def __init__(self, is_kept: Callable[[], bool], max_bytes: int) -> None:
        self.is_kept = is_kept
        self._max_bytes = max_bytes
        self._answers: deque[tuple[np.ndarray | None, int]] = deque()
        self.oldest = self.num_bytes = 0

    @property
    def next(self) -> int:
        """Number of the next chunk to decode."""
        return self.oldest + len(self._answers)

    def add(self, pcm: np.ndarray | None, end: int) -> None:
        """Add the answer to chunk `next`: samples [n], and the position in the reply, in samples, at which they end."""
        self._answers.append((None if pcm is None else pcm.copy(), end))  # a view would keep the whole batch
        self.num_bytes += answer_bytes(pcm)
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= answer_bytes(self._answers.popleft()[0])
            self.oldest += 1

    def find(self, number: int) -> tuple[np.ndarray | None, int] | None:
        """Return the arguments of `add` for an answered chunk, or None if this chunk is the next one to decode.

        If its answer is no longer stored, or an earlier chunk is missing, raise InvalidRequest.
        """
        if not self.oldest <= number <= self.next:
            raise InvalidRequest(RESUME, f"a number of events in [{self.oldest}, {self.next}]", number)
        return None if number == self.next else self._answers[number - self.oldest]


def answer_bytes(pcm: np.ndarray | None) -> int:
    return ANSWER_BYTES + (0 if pcm is None else pcm.nbytes)


logger = logging.getLogger(__name__)
AUDIBLE = 0.01  # smallest magnitude of an audible sample


@dataclass(slots=True)
class DecoderSession:
    """Decoder state of one utterance.

    Attributes:
        state: Codec state before frame `windower.next_frame`: [1, D], or a row of the launcher's table.
        last_used_s: Time of the last chunk.
        reference: Frames of a voice reference, which are decoded but not sent.
        num_silent: Number of silent frames after the reference, which are decoded but not sent.
        num_samples: Number of samples sent, at `renderer.sample_rate`.
        first_sound: Index of the first sample that is not silence; None until one has been sent.
        collected: Samples and text for word times; None if these were not requested.
        failure: Error in decoding a chunk that had already been answered.
        sound: Key of the recorded voice in `SoundTable`, if there is one.
        dry_s: Time at which the client will have played all samples, if it started with the first one; None until
            samples are sent.
        answers: Last answers of a session that can be resumed; None for other utterances.
        marking: State of the marker; None if samples are not marked.
    """

    windower: Windower
    state: State
    renderer: Renderer
    last_used_s: float
    reference: VoiceReference = field(default_factory=VoiceReference)
    num_silent: int = 0
    next_index: int = 0
    num_samples: int = 0
    decode_s: float = 0.0
    first_sound: int | None = field(default=None)
    dry_s: float | None = field(default=None)
    collected: Collected | None = field(default=None)
    has_ended: bool = False
    failure: Exception | None = None
    sound: bytes | None = None
    answers: ResumableAnswers | None = None
    marking: MarkerStream | None = None

    @property
    def num_bytes(self) -> int:
        """Memory used by frames, codec state, stored answers and the marker."""
        holders = (self.windower, self.answers, self.marking)
        return sum(holder.num_bytes for holder in holders if holder is not None) + self.state.nbytes

    def audible_part(self, window: FrameWindow, pcm: np.ndarray, spec: CodecSpec) -> np.ndarray | None:
        """Return the audible samples of a window, given all of its samples, float32 [n]; None if there are none."""
        num_frames = self.reference.num_frames + self.num_silent
        num_unplayed = max(0, num_frames - window.first) * spec.samples_per_frame
        if num_unplayed == 0:
            return pcm
        return pcm[num_unplayed:] if num_unplayed < len(pcm) else None

    def render(self, pcm: np.ndarray | None, is_final: bool, num_cut: int = 0) -> np.ndarray | None:
        """Return newly decoded samples in the client's format, or None if there are none yet.

        Args:
            pcm: float32 samples [n] at the codec's sample rate.
            is_final: True for the utterance's last chunk that has frames.
            num_cut: If a limit ended the audio, number of its last samples in which it may end.
        """
        if self.has_ended:
            return None
        self.has_ended = is_final
        pcm = self._marked(pcm, is_final)
        if num_cut and pcm is not None:
            pcm = ended_in_pause(pcm, num_cut, self.renderer.codec_rate)
        samples = self.renderer.resample(pcm, is_final)
        if samples is not None:
            self._count_samples(samples)
        return self.renderer.encode(samples)

    def _marked(self, pcm: np.ndarray | None, is_final: bool) -> np.ndarray | None:
        """Return the marker's output for samples [n], or None if there is none yet."""
        if self.marking is None or (pcm is None and not is_final):
            return pcm
        marked = self.marking.push(np.zeros(0, np.float32) if pcm is None else pcm, is_final)
        return np.clip(marked, -1.0, 1.0) if len(marked) else None  # a marker may raise peaks

    def _count_samples(self, pcm: np.ndarray) -> None:
        if self.first_sound is None:
            loud = np.flatnonzero(np.abs(pcm) > AUDIBLE)
            self.first_sound = self.num_samples + int(loud[0]) if len(loud) else None
        self.num_samples += len(pcm)


class Sessions:
    """Open utterances by id. Only a single thread may call the methods, unless stated otherwise.

    Attributes:
        now: Monotonic clock in seconds.
        last_sizes: Sizes to which the last window of an utterance is padded (`Windower`).
        begin: Function that returns the codec state before an utterance, which the owner may replace.
    """

    def __init__(
        self,
        codec: Codec,
        limit: int,
        idle_timeout_s: float,
        clock: Callable[[], float],
        max_reference_bytes: int = 0,
        max_aligned_bytes: int = 0,
        marker: Marker | None = None,
    ) -> None:
        self._codec = codec
        self._marker = marker
        self.last_sizes: Sequence[int] = ()
        self.begin: Callable[[], State] = partial(codec.initial_state, 1)
        self._limit = limit
        self._idle_timeout_s = idle_timeout_s
        self.now = clock
        self._references = References(max_reference_bytes)
        self._sounds = SoundTable(codec, max_reference_bytes)
        self._stored = StoredBytes(max_aligned_bytes)
        self._open: dict[str, DecoderSession] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_bytes(self) -> int:
        """Memory used by all open utterances and cached voices, references and samples."""
        sessions = list(self._open.values())  # any thread may read this
        held = self._references.num_bytes + self._sounds.num_bytes + self._stored.held
        return held + sum(session.num_bytes for session in sessions)

    def advance(self, utterance: str, index: int, form: OutputForm) -> DecoderSession:
        """Return the session for an utterance's next chunk; a chunk with index 0 opens one with this output format.

        Raises:
            Exception: An earlier chunk, which had been answered, could not be decoded.
            InvalidRequest: Chunks are not numbered 0, 1, 2, ….
            Overloaded: Too many utterances are open.
        """
        session = self._open.get(utterance)
        if session is None:
            if index != 0:
                raise InvalidRequest("chunk.index", "0, because the utterance is not open", index)
            session = self._new(form)
            self._open[utterance] = session
        if session.failure is not None:
            raise session.failure
        if index != session.next_index:
            raise InvalidRequest("chunk.index", str(session.next_index), index)
        session.next_index += 1
        session.last_used_s = self.now()
        return session

    def kept_session(self, kept: Kept, form: OutputForm, is_kept: Callable[[], bool]) -> DecoderSession:
        """Return a session that can be resumed; the first chunk of the session's first connection opens it.

        Raises:
            InvalidRequest: The session is lost, for example because the decoder was restarted.
            Overloaded: Too many utterances are open.
        """
        session = self._open.get(kept.utterance)
        if session is None:
            if kept.number is not None:
                expected = "a session whose speech is still in the decoder; begin another one"
                raise InvalidRequest(RESUME, expected, "a session that the decoder has lost")
            session = self._open[kept.utterance] = self._new(form)
            session.answers = ResumableAnswers(is_kept, MAX_KEPT_BYTES)
        session.last_used_s = self.now()
        return session

    def keep_alive(self, utterance: str) -> None:
        """Restart the idle timeout of an utterance. Any thread may call this method."""
        session = self._open.get(utterance)
        if session is not None:
            session.last_used_s = self.now()

    def collect_for_alignment(self, session: DecoderSession, chunk: Chunk) -> None:
        """Begin to store samples and text if a chunk requests word times."""
        if chunk.alignment is not None and session.collected is None:
            session.collected = Collected.begin(chunk.alignment, self._codec.spec.sample_rate, self._stored)

    def apply_reference(self, session: DecoderSession, chunk: Chunk, codes: np.ndarray | None) -> None:
        """Apply a chunk's voice, voice reference and number of silent frames, if it has any, to the session.

        If the reference is in the cache, its decoder state is reused. If one of them is invalid, or the codec does not
        support it, raise InvalidRequest.
        """
        if chunk.index == 0:
            self._select_voice(session, chunk)
        elif chunk.sound is not None:
            raise InvalidRequest("chunk.sound", "none after the first chunk", "one")
        if chunk.num_silent_frames:
            if not session.windower.is_empty:
                raise InvalidRequest("chunk.num_silent_frames", "0 after the first frame", chunk.num_silent_frames)
            session.num_silent = chunk.num_silent_frames
        if chunk.num_reference_frames == 0:
            return
        is_alone = session.renderer.form.deterministic
        is_first = session.windower.is_empty
        reference = read_reference(chunk, codes, self._codec.spec, is_alone, is_first)
        session.reference = reference
        cached = None if reference.key is None else self._references.find(reference.key)
        if cached is not None:
            session.windower, session.state = cached
            reference.parts.clear()
            reference.key = None

    def _select_voice(self, session: DecoderSession, chunk: Chunk) -> None:
        """Select a chunk's voice; raise InvalidRequest if the codec does not have it, or cannot use its recording."""
        if chunk.sound is not None:
            if chunk.voice:
                raise InvalidRequest("chunk.voice", "0 with a recorded voice", chunk.voice)
            number, session.sound = self._sounds.acquire(chunk.sound)
            self._set_voice(session, number)
            return
        most = max(0, self._codec.spec.num_voices - 1)
        if chunk.voice > most:
            raise InvalidRequest("chunk.voice", f"a number in [0, {most}]", chunk.voice)
        if chunk.voice:
            self._set_voice(session, chunk.voice)

    def _set_voice(self, session: DecoderSession, number: int) -> None:
        assert isinstance(session.state, Tensor), "codecs with voices have no graphs"
        session.state[:, 0] = number

    def early_samples(self, session: DecoderSession, chunk: Chunk, codes: np.ndarray | None) -> np.ndarray | None:
        """Return the samples that arrived with a chunk, float32 [n]; None if it must be decoded first.

        The session must not have the chunk's frames yet. If the number of samples is wrong, raise InvalidRequest.
        """
        spec = self._codec.spec
        has_context = not session.windower.is_empty or session.reference.num_frames > 0 or chunk.sound is not None
        if not chunk.samples or codes is None or has_context or chunk.flushes or not spec.can_pad:
            return None
        num_bytes = 4 * codes.shape[1] * spec.samples_per_frame
        if len(chunk.samples) != num_bytes:
            expected = f"{num_bytes} bytes for {codes.shape[1]} frames"
            raise InvalidRequest("chunk.samples", expected, f"{len(chunk.samples)} bytes")
        pcm = np.frombuffer(chunk.samples, "<f4")
        return pcm[session.num_silent * spec.samples_per_frame :]

    def note_failure(self, utterance: str, error: Exception) -> None:
        """Make the next chunk of an utterance fail, because an earlier one was answered before its decoding failed."""
        session = self._open.get(utterance)
        if session is not None:
            session.failure = error

    def next_window(
        self, session: DecoderSession, chunk: Chunk, codes: np.ndarray | None
    ) -> tuple[FrameWindow | None, bool]:
        """Return a chunk's next window, and True if it is the last; raise InvalidRequest if the codes are invalid.

        The result is (None, True) if the chunk's frames, [K, T], can be decoded only together with later ones.
        """
        if session.has_ended:
            return None, True
        window = self._next_reference_window(session)
        if window is not None:
            return window, False
        if codes is not None and chunk.num_reference_frames:
            codes = codes[:, chunk.num_reference_frames :]
        return session.windower.push(codes, chunk.flushes), True

    def _next_reference_window(self, session: DecoderSession) -> FrameWindow | None:
        """Return the next window of a voice reference, or None after the last one, whose decoder state is cached."""
        reference = session.reference
        while reference.parts:
            window = session.windower.push(reference.parts.popleft(), is_final=False)
            if window is not None:
                return window
        if reference.key is not None:
            self._references.remember(reference.key, session.windower, session.state)
            reference.key = None
        return None

    def due_s(self, session: DecoderSession) -> float:
        """Return the time at which the client will have played everything sent, or now if nothing has been sent."""
        return self.now() if session.dry_s is None else session.dry_s

    def spare_s(self) -> float:
        """Return the time until the first client underruns; 0 if one still waits for its first audio."""
        now = self.now()
        return min((max(0.0, (session.dry_s or now) - now) for session in self._open.values()), default=0.0)

    def note_sent(self, session: DecoderSession, num_samples: int) -> bool:
        """Record that samples are sent; return True if they are late.

        A client that began to play with the first samples has then run out of audio.
        """
        if not num_samples:
            return False
        now = self.now()
        dry_s = now if session.dry_s is None else session.dry_s
        session.dry_s = max(now, dry_s) + num_samples / session.renderer.sample_rate
        return now > dry_s

    def is_open(self, utterance: str, session: DecoderSession) -> bool:
        return self._open.get(utterance) is session

    def close(self, utterance: str) -> None:
        """Remove an utterance, if it is open, and its stored samples."""
        session = self._open.get(utterance)
        self.end(utterance)
        self._open.pop(utterance, None)
        if session is not None and session.collected is not None:
            session.collected.drop()

    def end(self, utterance: str) -> None:
        """Remove an utterance, but keep its stored samples, which word times still need.

        A session that can be resumed stays open, so that its answers can be sent again.
        """
        session = self._open.get(utterance)
        if session is None:
            return
        if session.answers is None:
            del self._open[utterance]
        else:
            session.state = torch.empty(1, 0)
        if session.sound is not None:
            self._sounds.release(session.sound)
            session.sound = None

    def expire(self) -> list[str]:
        """Close the utterances whose idle timeout has passed, and return their ids.

        Sessions that can be resumed have no idle timeout; they are closed once they can no longer be resumed.
        """
        over = [
            utterance for utterance, session in self._open.items() if session.answers and not session.answers.is_kept()
        ]
        for utterance in over:
            self.close(utterance)
        oldest = self.now() - self._idle_timeout_s
        idle = [
            utterance
            for utterance, session in self._open.items()
            if session.last_used_s < oldest and session.answers is None
        ]
        for utterance in idle:
            self.close(utterance)
        if idle:
            logger.warning("utterances without a chunk for %g s: %s", self._idle_timeout_s, idle)
        return idle

    def _new(self, form: OutputForm) -> DecoderSession:
        if len(self._open) >= self._limit:
            raise Overloaded(f"{self._limit} utterances are being decoded already")
        spec = self._codec.spec
        windower = Windower(spec, self.last_sizes)
        session = DecoderSession(windower, self.begin(), Renderer(form, spec), self.now())
        if self._marker is not None:
            session.marking = self._marker.stream(spec.sample_rate, spec.samples_per_frame)
        return session
