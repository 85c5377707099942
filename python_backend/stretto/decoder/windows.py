"""Windows of an utterance's codes, and voice references."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from stretto.codecs.base import Codec, CodecSpec, RecordedVoices
from stretto.decoding.states import State
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk, Sound
from stretto.streams.layout import latents_of


@dataclass(frozen=True, slots=True)
class FrameWindow:
    """Frames of one utterance to decode, with their left and right context.

    Attributes:
        codes: Frames `first` - `left` to `first` + `num_frames` + `right` - 1, [K, left + num_frames + right].
        num_padding: Number of frames after the utterance's last one that give the window a usual shape. Their samples
            are not played.
    """

    codes: np.ndarray
    first: int
    left: int
    right: int
    num_padding: int = 0

    @property
    def num_frames(self) -> int:
        return self.codes.shape[1] - self.left - self.right

    def without_padding(self, pcm: np.ndarray, samples_per_frame: int) -> np.ndarray:
        """Return the samples [n] of the window without its padding; `pcm` itself if it has none."""
        return pcm[: -self.num_padding * samples_per_frame] if self.num_padding else pcm

    @property
    def shape(self) -> tuple[int, int, int]:
        """Left context, number of frames and right context; windows of equal shape decode as one batch."""
        return self.left, self.num_frames, self.right


def check_codes(codes: np.ndarray, spec: CodecSpec) -> None:
    """Raise InvalidRequest unless codes [K, T] are integers in [0, codebook_size), or words of finite latents."""
    if codes.ndim != 2 or codes.shape[0] != spec.num_codebooks:
        raise InvalidRequest("codes", f"shape [{spec.num_codebooks}, T]", list(codes.shape))
    if codes.dtype.kind not in "iu":
        raise InvalidRequest("codes", "an integer type", codes.dtype)
    if spec.are_latents:
        if not np.isfinite(latents_of(codes)).all():
            raise InvalidRequest("codes", "finite latents", "NaN or infinity")
    elif codes.size and not 0 <= codes.min() <= codes.max() < spec.codebook_size:
        raise InvalidRequest("codes", f"values in [0, {spec.codebook_size})", f"[{codes.min()}, {codes.max()}]")


class Windower:
    """Divides the frames of one utterance into windows.

    Args:
        last_sizes: Sizes to which the last window is padded, in ascending order. A longer window is not padded, nor is
            one of a codec in which later frames change the samples of earlier ones (`CodecSpec.can_pad`).

    Attributes:
        next_frame: First frame that has not been decoded yet.
    """

    def __init__(self, spec: CodecSpec, last_sizes: Sequence[int] = ()) -> None:
        self._spec = spec
        self._last_sizes = last_sizes if spec.can_pad else ()
        self._kept = np.zeros((spec.num_codebooks, 0), dtype=np.int64)
        self._kept_from = 0  # frame number of the first stored column
        self.next_frame = 0

    def copy(self) -> "Windower":
        return copy(self)  # a shallow copy suffices: attributes are replaced, never modified in place

    @property
    def num_bytes(self) -> int:
        return self._kept.nbytes

    @property
    def is_empty(self) -> bool:
        return self.next_frame + self._kept.shape[1] == 0

    def push(self, codes: np.ndarray | None, is_final: bool) -> FrameWindow | None:
        """Append frames, integers [K, T]; return the window that they complete, or None if more frames are needed.

        At the end of the utterance (`is_final`), all remaining frames are decoded without right context. If the codes
        are invalid or the utterance is too long, raise InvalidRequest.
        """
        if codes is not None:
            check_codes(codes, self._spec)
            self._kept = np.concatenate([self._kept, codes.astype(np.int64)], axis=1)
        received = self._kept_from + self._kept.shape[1]
        most = self._spec.max_frames
        if most is not None and received > most:
            raise InvalidRequest("codes", f"at most {most} frames in an utterance", f"{received} frames")
        end = received if is_final else self._spec.complete(received)
        last = end if is_final else end - self._spec.right_frames
        too_early = not is_final and received < self._spec.start_frames
        if last <= self.next_frame or too_early:
            return None
        left = self.next_frame - self._kept_from
        codes = self._kept[:, : end - self._kept_from]
        num_padding = self._num_padding(last - self.next_frame) if is_final else 0
        if num_padding:
            codes = np.pad(codes, ((0, 0), (0, num_padding)))
        window = FrameWindow(codes, self.next_frame, left, end - last, num_padding)
        self._forget_before(self._spec.first_needed(last))
        self.next_frame = last
        return window

    def _num_padding(self, num_frames: int) -> int:
        return next((size - num_frames for size in self._last_sizes if size >= num_frames), 0)

    def _forget_before(self, frame: int) -> None:
        surplus = max(0, frame - self._kept_from)
        self._kept = self._kept[:, surplus:].copy()
        self._kept_from += surplus


MAX_REFERENCES = 4096  # voice references whose states are kept; on a GPU, each needs a row of the table of states
PART_FRAMES = 25  # frames decoded in one pass; other utterances are decoded in between


@dataclass(slots=True)
class VoiceReference:
    """Voice reference of an utterance: frames before its first one, which are decoded but not played.

    Attributes:
        parts: Parts [K, n] that have not been decoded yet.
        key: Cache key of the decoder state after the reference; None if there is no reference or its state is cached.
    """

    num_frames: int = 0
    parts: deque[np.ndarray] = field(default_factory=deque)
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Decoder state after a voice reference."""

    windower: Windower
    state: State

    @property
    def num_bytes(self) -> int:
        return self.windower.num_bytes + self.state.nbytes


class References:
    """LRU cache of decoder states after voice references, bounded in bytes, and to MAX_REFERENCES states.

    Not thread-safe, except for `num_bytes`. Deterministic utterances have separate keys (see `read_reference`).
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._latest: OrderedDict[bytes, _Decoded] = OrderedDict()
        self.num_bytes = 0

    def find(self, key: bytes) -> tuple[Windower, State] | None:
        """Return the windower and codec state after a reference, or None if it is not in the cache."""
        decoded = self._latest.get(key)
        if decoded is None:
            return None
        self._latest.move_to_end(key)
        return decoded.windower.copy(), decoded.state

    def remember(self, key: bytes, windower: Windower, state: State) -> None:
        """Cache the decoder state after a reference; evict the least recently used states to stay within the limits."""
        decoded = _Decoded(windower.copy(), state)
        if key in self._latest or decoded.num_bytes > self._max_bytes:
            return
        self._latest[key] = decoded
        self.num_bytes += decoded.num_bytes
        while self.num_bytes > self._max_bytes or len(self._latest) > MAX_REFERENCES:
            self.num_bytes -= self._latest.popitem(last=False)[1].num_bytes


def read_reference(
    chunk: Chunk, codes: np.ndarray | None, spec: CodecSpec, is_alone: bool, is_first: bool
) -> VoiceReference:
    """Return the voice reference at the start of the utterance's first chunk with frames.

    Args:
        codes: Codes of the chunk, [K, T].
        is_alone: True if the utterance is decoded in its own batches. It then shares cached states only with other
            such utterances.
        is_first: False if an earlier chunk had frames; a reference then raises InvalidRequest.
    """
    length = chunk.num_reference_frames
    there = 0 if codes is None else codes.shape[-1]
    if not is_first or length > there:
        expected = f"at most {there}, the frames of its chunk" if is_first else "0 after the first frame"
        raise InvalidRequest("chunk.num_reference_frames", expected, length)
    assert codes is not None, "it has frames"
    check_codes(codes, spec)
    whole = np.ascontiguousarray(codes[:, :length], np.int64)
    parts = deque(whole[:, at : at + PART_FRAMES] for at in range(0, length, PART_FRAMES))
    key = blake2b(whole.tobytes() + bytes([is_alone])).digest()
    return VoiceReference(length, parts, key)


@dataclass(slots=True)
class _Recorded:
    """Recorded voice in the codec.

    Attributes:
        can_recur: False if it contains the text of a reply, so that other utterances are unlikely to use it.
    """

    number: int
    num_bytes: int
    can_recur: bool
    num_users: int = 0


class SoundTable:
    """Recorded voices in the codec, by digest.

    Voices in use are never evicted; there are at most as many as open utterances. When the total size exceeds
    `max_bytes`, unused voices are evicted, least recently used first. Those that cannot recur are evicted at once. Not
    thread-safe, except for `num_bytes`.
    """

    def __init__(self, codec: Codec, max_bytes: int) -> None:
        self._codec = codec
        self._max_bytes = max_bytes
        self._latest: OrderedDict[bytes, _Recorded] = OrderedDict()
        self.num_bytes = 0

    def acquire(self, sound: Sound) -> tuple[int, bytes]:
        """Return the voice's number and the key for releasing it; raise InvalidRequest if the codec cannot use it."""
        if not isinstance(self._codec, RecordedVoices):
            raise InvalidRequest("chunk.sound", f"none, because {self._codec.spec.name} has no recorded voices", "one")
        key = sound.digest
        if key not in self._latest:
            number = self._codec.add_voice(*sound.arrays(), *sound.prompt)
            self._latest[key] = _Recorded(number, sound.num_bytes, can_recur=not sound.text)
            self.num_bytes += sound.num_bytes
        self._latest.move_to_end(key)
        voice = self._latest[key]
        voice.num_users += 1
        self._evict(self._codec)
        return voice.number, key

    def release(self, key: bytes) -> None:
        """Record that an utterance no longer uses a voice."""
        assert isinstance(self._codec, RecordedVoices), self._codec.spec.name
        self._latest[key].num_users -= 1
        self._evict(self._codec)

    def _evict(self, codec: RecordedVoices) -> None:
        for key, voice in [(key, voice) for key, voice in self._latest.items() if not voice.num_users]:
            if voice.can_recur and self.num_bytes <= self._max_bytes:
                continue
            del self._latest[key]
            codec.remove_voice(voice.number)
            self.num_bytes -= voice.num_bytes
