"""`nanocodec`: decoder of NVIDIA's NanoCodec (22.05 kHz, 21.5 frames of 8 codes per second).

codes ─► 8 × 4 levels ─► conv ─► 5 × (half-snake, ↑ 8, 8, 4, 2, 2, mean of 3 branches) ─► half-snake ─► conv ─► pcm
                         6 back      1 step back       up to 180 steps back                             2 back

A code selects one of finitely many levels for each of four numbers (finite scalar quantisation), so there are no tables
of codebook entries. All layers are causal and keep their last inputs in the state, so chunks may have any size. A
language model may generate several frames at once, *stacked*: codebook `lane * 8 + c` of such a frame is codebook c of
its frame `lane`. Tensors have the names of NeMo's `CausalHiFiGANDecoder`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful
from stretto.codecs.causal import Convolution, Upsampling, run_in_parts, steps_of
from stretto.codecs.memory import CausalCodec, Memory, num_kept
from stretto.codecs.streaming import AlphaSnake, Elu, Snake, prepare
from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.untrusted_files import check_value, json_object
from stretto.weights.loading import CONFIG_FILE, codec_directory, load_strictly, read_tensors
from stretto_magpie.family import MAX_STREAMS

MODEL_TYPE = "nanocodec"
FIRST_KERNEL = 7
LAST_KERNEL = 3
KERNELS = (3, 7, 11)  # kernel sizes of the branches of a stage
DILATIONS = (1, 3, 5)  # dilations of the units of a branch
# maximum of a number in config.json, and maximum length of a list
MAX_SIZE = 1 << 16
MAX_LENGTH = 8
MAX_CODES = 1 << 16


@dataclass(frozen=True, slots=True)
class NanoCodecConfig:
    """Sizes of the codec, under NeMo's names.

    Attributes:
        num_groups: Number of codebooks.
        num_levels_per_group: Number of levels of each number in a codebook entry.
        base_channels: Channels of the first layer, halved by each stage.
        up_sample_rates: Upsampling rates of the stages.
        frame_stacking_factor: Number of frames that are stacked.
    """

    sample_rate: int
    num_groups: int
    num_levels_per_group: tuple[int, ...]
    base_channels: int
    up_sample_rates: tuple[int, ...]
    frame_stacking_factor: int

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "NanoCodecConfig":
        """Return the sizes in a config.json; raise CheckpointError if one is missing or not supported."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = record.get(field.name)
            is_list = field.type is not int
            numbers: Any = value if is_list else [value]
            is_valid = isinstance(numbers, list | tuple) and 1 <= len(numbers) <= MAX_LENGTH
            least = 2 if field.name == "num_levels_per_group" else 1
            most = MAX_STREAMS if field.name in ("num_groups", "frame_stacking_factor") else MAX_SIZE
            if not is_valid or not all(type(number) is int and least <= number <= most for number in numbers):
                expected = f"1 to {MAX_LENGTH} integers" if is_list else "an integer"
                raise CheckpointError(f"{field.name}: expected {expected} in [{least}, {most}], got {shown(value)}")
            values[field.name] = tuple(numbers) if is_list else value
        config = cls(**values)
        if config.codebook_size > MAX_CODES:
            raise CheckpointError(
                f"num_levels_per_group: expected at most {MAX_CODES} codes, got {config.codebook_size}"
            )
        divisor = 1 << len(config.up_sample_rates)
        if config.base_channels % divisor:
            raise CheckpointError(
                f"base_channels: expected a multiple of {divisor} channels, got {config.base_channels}"
            )
        return config

    def to_record(self) -> dict[str, Any]:
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @property
    def codebook_size(self) -> int:
        return prod(self.num_levels_per_group)

    @property
    def width(self) -> int:
        """Number of channels of latents."""
        return self.num_groups * len(self.num_levels_per_group)

    def entries(self) -> Tensor:
        """Return the entries of each codebook, [codebook_size, D], in [-1, 1]."""
        columns = []
        below = 1  # number of codes that differ only in the levels before
        for num_levels in self.num_levels_per_group:
            half = num_levels // 2
            levels = torch.arange(self.codebook_size) // below % num_levels
            columns.append((levels - half) / half)
            below *= num_levels
        return torch.stack(columns, 1)


class HalfSnake(AlphaSnake):
    """Snake activation for the first half of the channels, and leaky ReLU for the others.

    Snake's factors are zero for the others, so that it leaves them unchanged and processes all channels at once.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Parameter(torch.ones(channels // 2)))
        self._num_others = channels - channels // 2

    def factors(self) -> tuple[Tensor, Tensor]:
        rate, height = super().factors()
        return F.pad(rate, (0, self._num_others)), F.pad(height, (0, self._num_others))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the activations of x [B, C, n], written to `out` if it is given and x is time-major."""
        activated = super().forward(x, out)
        F.leaky_relu_(activated[:, -self._num_others :])
        return activated


class PairUpsampling(Upsampling):
    """Upsampling in which each output channel depends on two input channels."""

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__(channels, channels // 2, 2 * rate, rate, groups=channels // 2)

    def forward(self, x: Tensor, memory: Memory, activation: Snake | Elu | None = None) -> Tensor:
        conv = self.conv
        assert isinstance(conv, nn.ConvTranspose1d)
        rows = memory.recall(x, 1, activation=activation).transpose(1, 2)
        pairs = rows.unflatten(2, (1, -1, 2))  # [B, 1 + n, 1, O, 2]
        taps = conv.weight.unflatten(2, (2, -1)).unflatten(0, (-1, 2))[:, :, 0].permute(2, 1, 3, 0)  # [2, 2, rate, O]
        out: Any = conv.bias
        for before in range(2):
            for channel in range(2):
                inputs = pairs[:, 1 - before : rows.shape[1] - before, ..., channel]
                out = torch.addcmul(out, inputs, taps[before, channel])
        return out.flatten(1, 2).transpose(1, 2)


class Unit(nn.Module):
    """Half-snake and a convolution, twice, with a residual connection. The first convolution has a dilation."""

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.input_activation = HalfSnake(channels)
        self.input_conv = Convolution(channels, channels, kernel, dilation)
        self.skip_activation = HalfSnake(channels)
        self.skip_conv = Convolution(channels, channels, kernel)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        inner = self.input_conv(x, memory, self.input_activation)
        return self.skip_conv(inner, memory, self.skip_activation).add_(x)


class Branch(nn.Module):
    """Units of one kernel size, one after another."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(Unit(channels, kernel, dilation) for dilation in DILATIONS)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        for unit in self.res_blocks:
            x = unit(x, memory)
        return x


class Branches(nn.Module):
    """Mean of the branches of all kernel sizes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(Branch(channels, kernel) for kernel in KERNELS)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        first, *others = self.res_blocks
        total = first(x, memory)
        for branch in others:
            total.add_(branch(x, memory))
        return total.div_(len(self.res_blocks))


class NanoCodec(CausalCodec):
    """NanoCodec without its encoder, which Magpie does not need. Its state is the decoder's memory."""

    entries: Tensor

    def __init__(self, config: NanoCodecConfig) -> None:
        super().__init__()
        channels = config.base_channels
        self.register_buffer("entries", config.entries(), persistent=False)
        self.pre_conv = Convolution(config.width, channels, FIRST_KERNEL)
        self.activations = nn.ModuleList()
        self.up_sample_conv_layers = nn.ModuleList()
        self.res_layers = nn.ModuleList()
        for rate in config.up_sample_rates:
            self.activations.append(HalfSnake(channels))
            self.up_sample_conv_layers.append(PairUpsampling(channels, rate))
            channels //= 2
            self.res_layers.append(Branches(channels))
        self.post_activation = HalfSnake(channels)
        self.post_conv = Convolution(channels, 1, LAST_KERNEL)
        self.spec = CodecSpec(
            name=MODEL_TYPE,
            sample_rate=config.sample_rate,
            samples_per_frame=config.frame_stacking_factor * prod(config.up_sample_rates),
            num_codebooks=config.frame_stacking_factor * config.num_groups,
            codebook_size=config.codebook_size,
            streaming=Stateful(),
            reads_rows=True,
        )
        self._num_stacked = config.frame_stacking_factor
        self._width = config.width
        self.state_size = num_kept(self)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest, because the checkpoint has no encoder."""
        raise InvalidRequest("audio", f"no audio ({self.spec.name} can only decode)", "audio")

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        stages = zip(self.activations, self.up_sample_conv_layers, self.res_layers, strict=True)
        layers = [self.pre_conv, *chain.from_iterable(stages), self.post_activation, self.post_conv]
        return run_in_parts(steps_of(layers), self._latents(codes), memory)[:, 0].clamp(-1, 1)

    def _latents(self, codes: Tensor) -> Tensor:
        """Return the latents [B, C, n · stacked] of codes [B, K, n]. Absent codebooks give zeros."""
        rows = F.embedding(codes.transpose(1, 2), self.entries).flatten(2)
        rows = F.pad(rows, (0, self._num_stacked * self._width - rows.shape[2]))
        return rows.unflatten(2, (self._num_stacked, self._width)).flatten(1, 2).transpose(1, 2)


def codec_shapes(config: NanoCodecConfig) -> dict[str, tuple[int, ...]]:
    """Map the name of each codec tensor to its shape."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in NanoCodec(config).state_dict().items()}


def load(directory: Path, device: str = "cpu") -> NanoCodec:
    """Load the codec from a checkpoint; raise CheckpointError if a file is missing or does not fit the codec."""
    directory = codec_directory(directory)
    config_path = directory / CONFIG_FILE
    record = json_object(config_path)
    check_value("model_type", record.get("model_type"), MODEL_TYPE, file=str(config_path))
    try:
        config = NanoCodecConfig.from_record(record)
    except CheckpointError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    codec = NanoCodec(config)
    path = directory / "model.safetensors"
    load_strictly(codec, read_tensors(path), path)
    codec.eval().requires_grad_(False).to(device)
    prepare(codec)
    return codec
