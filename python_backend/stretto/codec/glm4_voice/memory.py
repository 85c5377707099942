"""State of an utterance between blocks, flattened."""

from dataclasses import astuple, dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Memory:
    """State of B utterances between two blocks; parts shorter than their capacity are right-aligned.

    Attributes:
        mel: Mel already decoded, [B, M, n].
        overlap: Mel to be faded into the next block, [B, M, o].
        source: Excitation at the end of the decoded part, [B, s].
        pending: Samples of frames that are not complete yet, [B, p].
    """

    mel: Tensor
    overlap: Tensor
    source: Tensor
    pending: Tensor

    def flat(self, room: "Room") -> Tensor:
        """Return the state [B, room.size], with zeros in front of parts shorter than their capacity."""
        parts = [self.mel, self.overlap, self.source, self.pending]
        fitted = [_fitted(part, shape[-1]).flatten(1) for part, shape in zip(parts, room.shapes, strict=True)]
        state = fitted[0].new_empty(len(fitted[0]), room.size)
        for place, part in zip(state.split([each.shape[1] for each in fitted], 1), fitted, strict=True):
            place.copy_(part)
        return state


def _fitted(part: Tensor, length: int) -> Tensor:
    return F.pad(part, (max(0, length - part.shape[-1]), 0))[..., max(0, part.shape[-1] - length) :]


@dataclass(frozen=True, slots=True)
class Room:
    """Capacities of the four parts, without the batch dimension."""

    mel: tuple[int, int]
    overlap: tuple[int, int]
    source: tuple[int]
    pending: tuple[int]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return astuple(self)

    @property
    def size(self) -> int:
        """Numbers in the state of one utterance."""
        return sum(prod(shape) for shape in self.shapes)

    def read(self, state: Tensor) -> Memory:
        """Return the state [B, size] as its four parts."""
        parts = state.split([prod(shape) for shape in self.shapes], 1)
        return Memory(*(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)))
