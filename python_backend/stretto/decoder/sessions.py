"""The decoder's state of each open utterance: opened by its first chunk, closed by its last, an error or idleness."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from stretto.codec.base import Codec
from stretto.decoder.rendering import Renderer
from stretto.decoder.streaming import Windower
from stretto.errors import InvalidRequest, Overloaded
from stretto.records.delivery import OutputForm

AUDIBLE = 0.01  # a sample beyond this is sound, not the silence before it


@dataclass(slots=True)
class Session:
    """One open utterance. `state` [1, D] is the codec's, as it stands before `windower.next_frame`.

    num_samples, first_sound: of the samples as they are sent, at `renderer.sample_rate`. dry_s: when a listener who
    began with the first of them will have played them all; None before.
    """

    windower: Windower
    state: Tensor
    renderer: Renderer
    last_used_s: float
    next_index: int = 0
    num_samples: int = 0
    decode_s: float = 0.0
    first_sound: int | None = field(default=None)
    dry_s: float | None = field(default=None)

    @property
    def num_bytes(self) -> int:
        """Memory that grows with the codec: the frames kept and the state. What else there is takes some kilobytes."""
        return self.windower.num_bytes + self.state.nbytes

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

    def __init__(self, codec: Codec, limit: int, idle_timeout_s: float, clock: Callable[[], float]) -> None:
        self._codec = codec
        self._limit = limit
        self._idle_timeout_s = idle_timeout_s
        self._clock = clock
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_bytes(self) -> int:
        """Memory of all open utterances."""
        return sum(session.num_bytes for session in list(self._open.values()))  # any thread

    @property
    def num_speaking(self) -> int:
        """Utterances that have begun to sound."""
        return sum(session.windower.next_frame > 0 for session in self._open.values())

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
        return idle

    def _new(self, form: OutputForm) -> Session:
        if len(self._open) >= self._limit:
            raise Overloaded(f"{self._limit} utterances are being decoded already")
        spec = self._codec.spec
        return Session(Windower(spec), self._codec.initial_state(1), Renderer(form, spec), self._clock())
