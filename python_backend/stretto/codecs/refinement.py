"""Interface between a refinement and the decoder: first codebook of an utterance in, all codebooks out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.errors import InvalidRequest

FOLDER = "refinement"  # folder in a checkpoint


@dataclass(frozen=True, slots=True)
class Passage:
    """One whole utterance.

    Attributes:
        prompt: Rows of the language model's prompt, int64 [P, S].
        given: Codes of the first codebook, int64 [T].
    """

    prompt: np.ndarray
    given: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape; passages of equal shape may share a batch, so that none is padded much."""
        return -1, (len(self.prompt) + len(self.given)).bit_length(), 0


class Refinement(Protocol):
    """Model that fills in the codebooks after the first one; it needs the whole utterance.

    Attributes:
        num_streams: Number of streams of a prompt's rows, S.
        num_ids: Upper bound (exclusive) of ids in a prompt.
        codebook_size: Number of codes per codebook.
        max_rows: Largest number of rows of a prompt and its frames.
    """

    num_streams: int
    num_ids: int
    codebook_size: int
    max_rows: int

    def fill(self, passages: Sequence[Passage], told: Callable[[], None] | None = None) -> list[np.ndarray]:
        """Return codes, int64 [K, T], of each passage, independent of the batch.

        Calls `told` after each codebook, to report progress.
        """
        ...


def check_prompt(prompt: np.ndarray, refinement: Refinement) -> None:
    """Raise InvalidRequest unless a prompt is rows [S, P] of ids known to the refinement."""
    if prompt.ndim != 2 or prompt.shape[0] != refinement.num_streams or prompt.shape[1] == 0:
        raise InvalidRequest("codes", f"a prompt of shape [{refinement.num_streams}, P >= 1]", list(prompt.shape))
    _check_range(prompt, refinement.num_ids)


def check_given(codes: np.ndarray, num_rows: int, refinement: Refinement) -> None:
    """Raise InvalidRequest unless codes [1, T] belong to the first codebook and fit after `num_rows` rows."""
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
    """Codec combined with a refinement; it decodes complete codes."""

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
    """Return the refinement of a codec, or None if its codes arrive complete."""
    return codec.refinement if isinstance(codec, RefinedCodec) else None
