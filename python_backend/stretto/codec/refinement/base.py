"""The seam between a refinement and the decoder: the first codebook of an utterance in, all of its codebooks out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from stretto.codec.base import Codec, CodecSpec, Window
from stretto.errors import InvalidRequest

FOLDER = "refinement"  # of a checkpoint, where its codebooks are filled in


@dataclass(frozen=True, slots=True)
class Passage:
    """One whole utterance. prompt: [P, S] int64, the rows after which the language model began to speak, as it read
    them. given: [T] int64, the codes of the first codebook."""

    prompt: np.ndarray
    given: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Passages of equal shape may share a batch: none of them is made much longer for another's sake."""
        return -1, (len(self.prompt) + len(self.given)).bit_length(), 0


class Refinement(Protocol):
    """Fills the codebooks behind the first one. It looks at a whole utterance, so nothing is filled before its end.

    num_streams: S, of a prompt's rows. num_ids: what ids there begin below. codebook_size: of the codes.
    max_rows: of a prompt and the frames behind it.
    """

    num_streams: int
    num_ids: int
    codebook_size: int
    max_rows: int

    def fill(self, passages: Sequence[Passage], told: Callable[[], None] | None = None) -> list[np.ndarray]:
        """Codes [K, T] int64 of each passage, the same alone and beside others. told: called behind each codebook."""
        ...


def check_prompt(prompt: np.ndarray, refinement: Refinement) -> None:
    """Raise InvalidRequest unless a prompt is rows [S, P] of ids that the refinement knows."""
    if prompt.ndim != 2 or prompt.shape[0] != refinement.num_streams or prompt.shape[1] == 0:
        raise InvalidRequest("codes", f"a prompt of shape [{refinement.num_streams}, P >= 1]", list(prompt.shape))
    _check_range(prompt, refinement.num_ids)


def check_given(codes: np.ndarray, num_rows: int, refinement: Refinement) -> None:
    """Raise InvalidRequest unless codes [1, T] are of the first codebook, and fit behind `num_rows` rows."""
    if codes.ndim != 2 or codes.shape[0] != 1:
        raise InvalidRequest("codes", "shape [1, T]", list(codes.shape))
    _check_range(codes, refinement.codebook_size)
    if num_rows + codes.shape[1] > refinement.max_rows:
        raise InvalidRequest("codes", f"at most {refinement.max_rows} rows and frames", num_rows + codes.shape[1])


def _check_range(ids: np.ndarray, stop: int) -> None:
    if ids.dtype.kind not in "iu":
        raise InvalidRequest("codes", "an integer type", ids.dtype)
    if ids.size and not 0 <= ids.min() <= ids.max() < stop:
        raise InvalidRequest("codes", f"values in [0, {stop})", f"[{ids.min()}, {ids.max()}]")


class RefinedCodec:
    """The codec of `base.Codec` of a checkpoint whose codebooks are filled in before: it decodes what is whole."""

    def __init__(self, codec: Codec, refinement: Refinement) -> None:
        self._codec = codec
        self.spec: CodecSpec = codec.spec
        self.refinement = refinement

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        return self._codec.encode(pcm)

    def initial_state(self, batch: int) -> Tensor:
        return self._codec.initial_state(batch)

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        return self._codec.decode(window)


def refinement_of(codec: Codec) -> Refinement | None:
    """What fills the codebooks that come to a codec; None where they come whole."""
    return codec.refinement if isinstance(codec, RefinedCodec) else None
