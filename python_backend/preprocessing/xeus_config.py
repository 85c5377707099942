"""The numbers of XEUS, and how many frames it hears."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


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

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_record`; TypeError or KeyError where it is of something else."""
        layers = tuple((int(width), int(kernel), int(stride)) for width, kernel, stride in record["convolutions"])
        return cls(**{**record, "convolutions": layers})

    def to_record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform; of 16 kHz, with XEUS's seven layers, floor((n - 400) / 320) + 1, and 0 below 400."""
        length = num_samples
        for _, kernel, stride in self.convolutions:
            length = max(0, (length - kernel) // stride + 1)
        return length
