"""Reference frames, e.g. of a cloned voice, that precede an utterance as decoder context and are not audible.

    reference        reply
    ░░░░░░░░░░░░░░░░ ████████████      decoded in parts, then cached     audible

The samples of an utterance equal those of one decode of reference and reply, from the beginning of the reply.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from torch import Tensor

from stretto.codec.base import CodecSpec
from stretto.decoder.streaming import Windower, check_codes
from stretto.errors import InvalidRequest
from stretto.records.chunk import Chunk

PART_FRAMES = 25  # frames decoded at once, so that other utterances get a turn in between


@dataclass(slots=True)
class Reference:
    """Reference of an utterance.

    Attributes:
        num_frames: Number of reference frames.
        parts: Parts [K, n] that have not been decoded yet.
        key: Cache key of the resulting decoder state; None if it is cached already or there is no reference.
    """

    num_frames: int = 0
    parts: deque[np.ndarray] = field(default_factory=deque)
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Decoder state after a reference."""

    windower: Windower
    state: Tensor

    @property
    def num_bytes(self) -> int:
        return self.windower.num_bytes + self.state.nbytes


class References:
    """LRU cache of decoder states after references, bounded in bytes. For one thread, except `num_bytes`.

    Utterances that may share nothing have keys of their own.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._latest: OrderedDict[bytes, _Decoded] = OrderedDict()
        self.num_bytes = 0

    def find(self, key: bytes) -> tuple[Windower, Tensor] | None:
        """Return windower and codec state after a reference, or None if not cached."""
        decoded = self._latest.get(key)
        if decoded is None:
            return None
        self._latest.move_to_end(key)
        return decoded.windower.copy(), decoded.state

    def remember(self, key: bytes, windower: Windower, state: Tensor) -> None:
        """Cache the decoder state after a reference, evicting the least recently used."""
        decoded = _Decoded(windower.copy(), state)
        if key in self._latest or decoded.num_bytes > self._max_bytes:
            return
        self._latest[key] = decoded
        self.num_bytes += decoded.num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._latest.popitem(last=False)[1].num_bytes


def read_reference(chunk: Chunk, codes: np.ndarray | None, spec: CodecSpec, is_alone: bool) -> Reference:
    """Return the reference at the front of an utterance's first chunk.

    Args:
        chunk: Record of the chunk.
        codes: Codes of the chunk, [K, T].
        spec: Numbers of the codec.
        is_alone: True if the utterance may share nothing with others.

    Raises:
        InvalidRequest: If a later chunk names a reference, or it is longer than the chunk.
    """
    length, there = chunk.num_reference_frames, 0 if codes is None else codes.shape[-1]
    if chunk.index != 0 or length > there:
        expected = "0 behind the first chunk" if chunk.index else f"at most {there}, the frames of its chunk"
        raise InvalidRequest("chunk.num_reference_frames", expected, length)
    assert codes is not None, "it has frames"
    check_codes(codes, spec)
    whole = np.ascontiguousarray(codes[:, :length], np.int64)
    parts = deque(whole[:, at : at + PART_FRAMES] for at in range(0, length, PART_FRAMES))
    key = blake2b(whole.tobytes() + bytes([is_alone])).digest()
    return Reference(length, parts, key)
