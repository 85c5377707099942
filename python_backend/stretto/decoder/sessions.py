"""The decoder's state of each open utterance: opened by its first chunk, closed by its last, an error or idleness."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from stretto.codec.base import Codec, CodecSpec
from stretto.codec.refinement.base import refinement_of
from stretto.decoder.filling import Filling, Work, take_prompt
from stretto.decoder.references import Reference, References, read_reference
from stretto.decoder.rendering import Renderer
from stretto.decoder.streaming import FrameWindow, Windower
from stretto.errors import InvalidRequest, Overloaded
from stretto.records.chunk import Chunk
from stretto.records.delivery import OutputForm

logger = logging.getLogger(__name__)
AUDIBLE = 0.01  # a sample beyond this is sound, not the silence before it


@dataclass(slots=True)
class Session:
    """One open utterance. `state` [1, D] is the codec's, as it stands before `windower.next_frame`.

    reference: frames before the first one that is heard. filling: of one whose codebooks are filled in. num_samples,
    first_sound: of the samples as they are sent, at `renderer.sample_rate`. dry_s: when a listener who began with the
    first of them will have played them all; None before.
    """

    windower: Windower
    state: Tensor
    renderer: Renderer
    last_used_s: float
    reference: Reference = field(default_factory=Reference)
    filling: Filling | None = None
    next_index: int = 0
    num_samples: int = 0
    decode_s: float = 0.0
    first_sound: int | None = field(default=None)
    dry_s: float | None = field(default=None)

    @property
    def num_bytes(self) -> int:
        """Memory that grows with the codec: the frames kept and the state. What else there is takes some kilobytes."""
        return self.windower.num_bytes + self.state.nbytes + (self.filling.num_bytes if self.filling else 0)

    def keep(self, pcm: np.ndarray | None) -> None:
        """Take samples [n] of a window that is not the chunk's last; those of a reference are not heard."""
        if self.filling is not None and pcm is not None:
            self.filling.keep(pcm)

    def heard(self, window: FrameWindow, pcm: np.ndarray, spec: CodecSpec) -> np.ndarray | None:
        """What of a window's samples [n] is behind the reference, with all that was kept; None of nothing."""
        if self.filling is not None:
            return self.filling.joined(pcm)
        unheard = max(0, self.reference.num_frames - window.first) * spec.samples_per_frame
        return pcm if unheard == 0 else pcm[unheard:] if unheard < len(pcm) else None

    def render(self, pcm: np.ndarray | None, is_final: bool) -> np.ndarray | None:
        """Samples in the client's form for those [n] float32 just decoded; None where there are none (yet)."""
        samples = self.renderer.resample(pcm, is_final)
        if samples is not None:
            self._note(samples)
        return self.renderer.encode(samples)

    def _note(self, pcm: np.ndarray) -> None:
        """Count samples [n], and find the first audible one of the utterance."""
        if self.first_sound is None:
            loud = np.flatnonzero(np.abs(pcm) > AUDIBLE)
            self.first_sound = self.num_samples + int(loud[0]) if len(loud) else None
        self.num_samples += len(pcm)


class Sessions:
    """Open utterances by id. Used by one thread."""

    def __init__(
        self,
        codec: Codec,
        limit: int,
        idle_timeout_s: float,
        clock: Callable[[], float],
        max_reference_bytes: int = 0,
    ) -> None:
        self._codec = codec
        self._limit = limit
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._references = References(max_reference_bytes)
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_bytes(self) -> int:
        """Memory of all open utterances, and of what references have left."""
        sessions = list(self._open.values())  # any thread
        return self._references.num_bytes + sum(session.num_bytes for session in sessions)

    @property
    def num_speaking(self) -> int:
        """Utterances that have begun to sound."""
        return sum(session.windower.next_frame > session.reference.num_frames for session in self._open.values())

    def advance(self, utterance: str, index: int, form: OutputForm) -> Session:
        """The session that takes chunk `index`, opened, for samples in `form`, if that is 0.

        Raises InvalidRequest unless chunks come as 0, 1, 2, …; Overloaded when too many utterances are open.
        """
        session = self._open.get(utterance)
        if session is None:
            if index != 0:
                raise InvalidRequest("chunk.index", "0, as the utterance is not open", index)
            session = self._new(form)
            self._open[utterance] = session
        if index != session.next_index:
            raise InvalidRequest("chunk.index", str(session.next_index), index)
        session.next_index += 1
        session.last_used_s = self._clock()
        return session

    def keep(self, utterance: str) -> None:
        """Count an open utterance as one that has just had a chunk. Any thread may call it."""
        session = self._open.get(utterance)
        if session is not None:
            session.last_used_s = self._clock()

    def take_reference(self, session: Session, chunk: Chunk, codes: np.ndarray | None) -> None:
        """Let a session go on from the reference that its first chunk brings, from behind it where it is remembered, or
        from the prompt of a codec whose codebooks are filled in; and speak in the voice that its first chunk names.

        InvalidRequest where there can be none.
        """
        if chunk.index == 0:
            self._take_voice(session, chunk)
        session.filling = take_prompt(session.filling, refinement_of(self._codec), chunk, codes)
        if chunk.num_reference_frames == 0:
            return
        reference = read_reference(chunk, codes, self._codec.spec, session.renderer.form.deterministic)
        session.reference = reference
        found = None if reference.key is None else self._references.find(reference.key)
        if found is not None:
            session.windower, session.state = found
            reference.parts.clear()
            reference.key = None

    def _take_voice(self, session: Session, chunk: Chunk) -> None:
        """Let a session speak in the voice that a chunk names; InvalidRequest where the codec has none such."""
        most = max(0, self._codec.spec.num_voices - 1)
        if chunk.voice > most:
            raise InvalidRequest("chunk.voice", f"a number in [0, {most}]", chunk.voice)
        if chunk.voice:
            session.state.fill_(chunk.voice)

    def next_window(self, session: Session, chunk: Chunk, codes: np.ndarray | None) -> tuple[Work | None, bool]:
        """The next window of the last chunk that a session took, or the passage to be filled in before, and whether it
        is the chunk's last, not one of its reference.

        None, and True, where its own frames wait for more. Raises InvalidRequest.
        """
        filling = session.filling
        if filling is not None:
            session.last_used_s = self._clock()  # to fill may take as long as an idle utterance may live
            if filling.is_filled:
                return filling.next_window(session.windower)
            filling.take(None if chunk.is_prompt else codes)
            passage = filling.passage() if chunk.is_final else None
            return passage, passage is None
        part = self._next_part(session)
        if part is not None:
            return part, False
        if codes is not None and chunk.num_reference_frames:
            codes = codes[:, chunk.num_reference_frames :]
        return session.windower.push(codes, chunk.is_final), True

    def _next_part(self, session: Session) -> FrameWindow | None:
        """The next window of a session's reference; None, and what all of it has left is remembered, at its end."""
        reference = session.reference
        while reference.parts:
            window = session.windower.push(reference.parts.popleft(), is_final=False)
            if window is not None:
                return window
        if reference.key is not None:
            self._references.remember(reference.key, session.windower, session.state)
            reference.key = None
        return None

    def due_s(self, session: Session) -> float:
        """When the listener will have nothing left to play: now, if there was nothing yet."""
        return self._clock() if session.dry_s is None else session.dry_s

    def note_sent(self, session: Session, num_samples: int) -> None:
        """So many samples go to the listener now."""
        begins_s = max(self._clock(), session.dry_s or 0.0)
        if num_samples:
            session.dry_s = begins_s + num_samples / session.renderer.sample_rate

    def is_open(self, utterance: str, session: Session) -> bool:
        """Whether it is still this session that the utterance has."""
        return self._open.get(utterance) is session

    def close(self, utterance: str) -> None:
        """Forget an utterance; one that is not open is left alone."""
        self._open.pop(utterance, None)

    def expire(self) -> list[str]:
        """Close and name the utterances that have had no chunk for longer than the time-out."""
        oldest = self._clock() - self._idle_timeout_s
        idle = [utterance for utterance, session in self._open.items() if session.last_used_s < oldest]
        for utterance in idle:
            self.close(utterance)
        if idle:
            logger.warning("utterances without a chunk for %g s: %s", self._idle_timeout_s, idle)
        return idle

    def _new(self, form: OutputForm) -> Session:
        if len(self._open) >= self._limit:
            raise Overloaded(f"{self._limit} utterances are being decoded already")
        spec = self._codec.spec
        return Session(Windower(spec), self._codec.initial_state(1), Renderer(form, spec), self._clock())
