"""Hyperparameters of XEUS, and its number of frames per waveform."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

COUNTS = ("hidden heads blocks feed_forward gate gate_kernel merge_kernel position_kernel position_groups").split()


@dataclass(frozen=True, slots=True)
class XeusConfig:
    """Contents of `ssl_tokenizer/config.json`: a convolutional front end, then E-Branchformer blocks.

    Kernels are odd except `position_kernel`, which is even.

    Attributes:
        convolutions: (channels, kernel, stride) of the front end's layers.
        gate: Twice the width of the gated branch.
        norm: `layer_norm` for a norm after each front-end layer, `group_norm` for one after the first.
        normalizes_audio: True if the waveform is first normalised to mean 0 and variance 1.
        normalizes_output: True if the output of the front end is normalised.
    """

    convolutions: tuple[tuple[int, int, int], ...]
    hidden: int
    heads: int
    blocks: int
    feed_forward: int
    gate: int
    gate_kernel: int
    merge_kernel: int
    position_kernel: int = 128
    position_groups: int = 16
    norm: str = "layer_norm"
    has_bias: bool = True
    normalizes_audio: bool = True
    normalizes_output: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that no XEUS can have."""
        counts = [getattr(self, name) for name in COUNTS] + [number for layer in self.convolutions for number in layer]
        wrong = [number for number in counts if type(number) is not int or number < 1]
        if wrong or not self.convolutions or any(len(layer) != 3 for layer in self.convolutions):
            raise ValueError(f"expected positive whole numbers, got {self}")
        if self.hidden % self.heads or self.hidden % self.position_groups or self.gate % 2:
            raise ValueError(f"expected a width of whole heads and groups and an even gate, got {self}")
        if not self.gate_kernel % 2 or not self.merge_kernel % 2 or self.position_kernel % 2:
            raise ValueError(f"expected odd kernels and an even one of positions, got {self}")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the config for a record of `to_record`.

        Raises:
            TypeError, KeyError, ValueError: If the record is of something else.
        """
        return cls(**{**record, "convolutions": tuple((*layer,) for layer in record["convolutions"])})

    def to_record(self) -> dict[str, Any]:
        """Return a record for JSON."""
        return asdict(self)

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a waveform.

        At 16 kHz with XEUS's seven layers it is floor((n - 400) / 320) + 1, and 0 below 400 samples.
        """
        length = num_samples
        for _, kernel, stride in self.convolutions:
            length = max(0, (length - kernel) // stride + 1)
        return length
