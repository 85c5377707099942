"""What an utterance carries from block to block, as one flat state."""

from dataclasses import astuple, dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Memory:
    """B utterances between two blocks; what is shorter than its room stands at the room's end.

    mel [B, M, n]: what has been spoken. overlap [B, M, o]: made, to be faded into the next block. source [B, s]: the
    excitation at the end of what has been spoken. pending [B, p]: samples that belong to frames not complete yet.
    """

    mel: Tensor
    overlap: Tensor
    source: Tensor
    pending: Tensor

    def flat(self, room: "Room") -> Tensor:
        """The state [B, room.size]: the last of what there is, after zeros for what there is not yet."""
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
    """Shapes of the four, without the batch."""

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
        """The state [B, size] as its four parts."""
        parts = state.split([prod(shape) for shape in self.shapes], 1)
        return Memory(*(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)))
