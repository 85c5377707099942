"""Interface for models that fill in the codebooks after the first one, such as VALL-E's NAR model."""

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
    """Whole utterance whose codebooks after the first are to be filled in.

    Attributes:
        prompt: Rows of the language model's prompt, int64 [P, S].
        first_codes: Codes of the first codebook, int64 [T].
    """

    prompt: np.ndarray
    first_codes: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size class. Passages of the same class may share a batch, because little padding is needed."""
        return -1, (len(self.prompt) + len(self.first_codes)).bit_length(), 0

    @property
    def max_rows(self) -> int:
        """Maximum number of rows of a passage of this size class."""
        return 1 << self.shape[1]


class Refinement(Protocol):
    """Model that fills in the codebooks after the first one, given the whole utterance.

    Attributes:
        num_streams: Number of streams S in a prompt.
        num_ids: Exclusive upper bound of the ids in a prompt.
        codebook_size: Number of codes per codebook.
        max_rows: Maximum total number of prompt rows and frames.
    """

    num_streams: int
    num_ids: int
    codebook_size: int
    max_rows: int

    def fill(self, passages: Sequence[Passage], on_codebook: Callable[[], None] | None = None) -> list[np.ndarray]:
        """Return the completed codes of each passage, int64 [K, T], independent of the rest of the batch.

        Args:
            passages: Prompts and codes of the first codebook.
            on_codebook: Called after each codebook, to report progress.
        """
        ...


def check_prompt(prompt: np.ndarray, refinement: Refinement) -> None:
    """Check the prompt in a request to the decoder.

    Args:
        prompt: Prompt rows, int [S, P].
        refinement: Model that will fill in the codebooks.

    Raises:
        InvalidRequest: If the shape is wrong or an id is out of range.
    """
    if prompt.ndim != 2 or prompt.shape[0] != refinement.num_streams or prompt.shape[1] == 0:
        raise InvalidRequest("codes", f"a prompt of shape [{refinement.num_streams}, P >= 1]", list(prompt.shape))
    _check_range(prompt, refinement.num_ids)


def check_first_codes(codes: np.ndarray, num_rows: int, refinement: Refinement) -> None:
    """Check codes of the first codebook in a request to the decoder.

    Args:
        codes: Codes, int [1, T].
        num_rows: Number of prompt rows and frames before these codes.
        refinement: Model that will fill in the codebooks.

    Raises:
        InvalidRequest: If the shape is wrong, a code is out of range, or the utterance is too long for the model.
    """
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
    """Codec combined with the model that fills in the codebooks after the first one."""

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
    """Return the model that fills in the codebooks after the first one, or None if the language model generates all."""
    return codec.refinement if isinstance(codec, RefinedCodec) else None
