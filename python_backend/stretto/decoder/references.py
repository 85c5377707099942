"""References: frames that an utterance goes on from, as a cloned voice does, and of which nothing is heard.

    reference        reply
    ░░░░░░░░░░░░░░░░ ████████████      decoded in parts, then remembered     heard

Put together, an utterance's samples are those of one decode of reference and reply, from where the reply begins.
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

PART_FRAMES = 25  # decoded at once: between them others have their turn


@dataclass(slots=True)
class Reference:
    """A reference of so many frames, and the parts [K, n] of it that have not been decoded yet.

    key: of what it leaves behind; None where that is known, or there is none.
    """

    num_frames: int = 0
    parts: deque[np.ndarray] = field(default_factory=deque)
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Where an utterance stands behind a reference."""

    windower: Windower
    state: Tensor

    @property
    def num_bytes(self) -> int:
        return self.windower.num_bytes + self.state.nbytes


class References:
    """What the references that came last have left behind, in so much memory. Used by one thread, but for `num_bytes`.

    An utterance that may share nothing with others finds only what one like it has left.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._latest: OrderedDict[bytes, _Decoded] = OrderedDict()
        self.num_bytes = 0

    def find(self, key: bytes) -> tuple[Windower, Tensor] | None:
        """The windower and the state with which an utterance goes on from a reference; None where it is forgotten."""
        decoded = self._latest.get(key)
        if decoded is None:
            return None
        self._latest.move_to_end(key)
        return decoded.windower.copy(), decoded.state

    def remember(self, key: bytes, windower: Windower, state: Tensor) -> None:
        """Keep where an utterance stands; what has not been asked for the longest makes room."""
        decoded = _Decoded(windower.copy(), state)
        if key in self._latest or decoded.num_bytes > self._max_bytes:
            return
        self._latest[key] = decoded
        self.num_bytes += decoded.num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._latest.popitem(last=False)[1].num_bytes


def read_reference(chunk: Chunk, codes: np.ndarray | None, spec: CodecSpec, is_alone: bool) -> Reference:
    """The reference at the front of the codes [K, T] of an utterance's first chunk; InvalidRequest in any other.

    is_alone: whether the utterance may share nothing with others.
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
