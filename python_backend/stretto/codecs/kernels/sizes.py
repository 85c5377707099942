"""Sizes and names of modes that the kernels of codecs and their callers share."""

from typing import NamedTuple

IEEE = "ieee"  # Triton's name for products in float32
GATE = "gate"  # activation of pairs of columns, whose result has half as many


class Sizes(NamedTuple):
    """Sizes of a layer and of its window that the shapes of tensors do not define.

    Attributes:
        before: Number of inputs before the first new one: the last ones of the state, or zeros.
        again: Number of new inputs at the end that the next window contains again; the state does not keep them.
        late: Number of inputs at an utterance's start that count as zeros.
        dilation: Distance of the inputs that two taps read.
        is_transposed: True for a transposed convolution, whose last tap reads the earliest input.
        rate: Number of outputs for a step of the product.
        trim: Number of outputs cut off at the start.
        stride: Distance of the inputs of two steps.
        num_rotated: Number of columns that are rotated, in heads of `head_dim`.
    """

    length: int
    before: int = 0
    again: int = 0
    late: int = 0
    dilation: int = 1
    is_transposed: bool = False
    rate: int = 1
    trim: int = 0
    stride: int = 1
    num_rotated: int = 0
    head_dim: int = 2
