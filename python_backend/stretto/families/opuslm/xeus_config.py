"""The numbers of XEUS, and how many frames it hears."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

COUNTS = ("hidden heads blocks feed_forward gate gate_kernel merge_kernel position_kernel position_groups").split()


@dataclass(frozen=True, slots=True)
class XeusConfig:
    """What `ssl_tokenizer/config.json` says: a convolutional front end, then E-Branchformer blocks.

    convolutions: (channels, kernel, stride) of the front end's layers. norm: `layer_norm` after each of them, or
    `group_norm` after the first. normalizes_audio: to mean 0 and variance 1 before. normalizes_output: of the front
    end. gate: twice the width of the gated branch. Kernels are odd but for `position_kernel`, which is even.
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
        """ValueError where no XEUS has such numbers."""
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
        """The inverse of `to_record`; TypeError, KeyError or ValueError where it is of something else."""
        return cls(**{**record, "convolutions": tuple((*layer,) for layer in record["convolutions"])})

    def to_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform; of 16 kHz, with XEUS's seven layers, floor((n - 400) / 320) + 1, and 0 below 400."""
        length = num_samples
        for _, kernel, stride in self.convolutions:
            length = max(0, (length - kernel) // stride + 1)
        return length
