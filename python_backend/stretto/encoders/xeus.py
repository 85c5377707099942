"""XEUS, the speech encoder that OpusLM's semantic tokens are computed with. It processes one waveform at a time.

    pcm ─► 7 convolutions ─► projection ─► positions ─► 19 E-Branchformer blocks ─► norm ─► features, 50 per s

                       ┌► attention ───────┐
    x ─► ½ feed forward┤                   ├► merge ─► ½ feed forward ─► norm        (each with its residual)
                       └► gated convolution┘

Chen et al., "Towards Robust Speech Representation Learning for Thousands of Languages" (2024). Layers and names follow
espnet2/{asr/frontend/cnn,asr/encoder/e_branchformer_encoder,asr/layers/cgmlp}.py in https://github.com/espnet/espnet.
The output of the position layer replaces its input instead of being added to it. XEUS was trained in this way, with
ESPnet's ConvolutionalPositionalEmbedding without `use_residual`.

`XeusTokenizer` converts audio to OpusLM's semantic codes. Its folder `ssl_tokenizer/` is optional in a checkpoint;
`stretto convert` writes it from https://huggingface.co/espnet/xeus. Without it, audio is accepted only as codes.

As in OpusLM's training data, the features come from the last layer (18, counted from 0), after the encoder's final norm
(`ESPnetHubertFeatureReader` in egs2/TEMPLATE/asr1/pyscripts/feats/ssl_feature_utils.py in the OpusLM branch). No frame
is masked. A code is the index of the k-means centre nearest to a feature (Euclidean distance; dump_km_label.py in that
branch).
"""

import pickle
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object, regular_file
from stretto.weights.loading import load_strictly

COUNTS = ("hidden heads blocks feed_forward gate gate_kernel merge_kernel position_kernel position_groups").split()


@dataclass(frozen=True, slots=True)
class XeusConfig:
    """Contents of `ssl_tokenizer/config.json`: a convolutional front end, then E-Branchformer blocks.

    Kernel sizes are odd, except `position_kernel`, which is even.

    Attributes:
        convolutions: (channels, kernel, stride) of the front end's layers.
        gate: Twice the width of the gated branch.
        norm: `layer_norm` for a norm after each layer of the front end, `group_norm` for one after the first only.
        normalizes_audio: True if the waveform is first normalised to zero mean and unit variance.
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
        counts = [getattr(self, name) for name in COUNTS] + [number for layer in self.convolutions for number in layer]
        wrong = [number for number in counts if type(number) is not int or number < 1]
        if wrong or not self.convolutions or any(len(layer) != 3 for layer in self.convolutions):
            raise ValueError(f"expected positive integers, got {self}")
        if self.hidden % self.heads or self.hidden % self.position_groups or self.gate % 2:
            raise ValueError(f"expected a width of whole heads and groups and an even gate, got {self}")
        if not self.gate_kernel % 2 or not self.merge_kernel % 2 or self.position_kernel % 2:
            raise ValueError(f"expected odd kernels and an even one of positions, got {self}")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the config in a record written by `to_record`; raise TypeError, KeyError or ValueError if invalid."""
        return cls(**{**record, "convolutions": tuple((*layer,) for layer in record["convolutions"])})

    def to_record(self) -> dict[str, Any]:
        """Return the config as data for JSON."""
        return asdict(self)

    def num_frames(self, num_samples: int) -> int:
        """Return the number of feature frames for `num_samples` samples.

        With the seven layers of XEUS, at 16 kHz, the number is floor((n - 400) / 320) + 1, or 0 if n is below 400.
        """
        length = num_samples
        for _, kernel, stride in self.convolutions:
            length = max(0, (length - kernel) // stride + 1)
        return length


EPS = 1e-12  # of the encoder's norms; the front end's norms use torch's default


class Xeus(nn.Module):
    """XEUS encoder: waveform to features. Tensors are named as published, with weight norms multiplied out."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        self.frontend = FrontEnd(config)
        self.preencoder = nn.ModuleDict({"linear_out": nn.Linear(config.convolutions[-1][0], config.hidden)})
        self.encoder = Encoder(config)

    def forward(self, pcm: Tensor) -> Tensor:
        """Return features [T, H] of samples [n]; T is `XeusConfig.num_frames(n)` and at least 1."""
        return self.encoder(self.preencoder["linear_out"](self.frontend(pcm[None])))[0]


class FrontEnd(nn.Module):
    """Convolutional front end: samples [B, n] to frames [B, T, C]."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        inputs = [1, *(width for width, _, _ in config.convolutions)]
        self.layers = nn.ModuleList(
            FrontEndLayer(config, index, channels) for index, channels in enumerate(inputs[:-1])
        )
        self.final_norm = nn.LayerNorm(inputs[-1]) if config.normalizes_output else nn.Identity()
        self._normalizes = config.normalizes_audio

    def forward(self, pcm: Tensor) -> Tensor:
        x = functional.layer_norm(pcm, pcm.shape[1:]) if self._normalizes else pcm
        x = x[:, None]
        for layer in self.layers:
            x = layer(x)
        return self.final_norm(x.transpose(1, 2))


class FrontEndLayer(nn.Module):
    """Convolution, optional norm and GELU: [B, C, n] to [B, C', n']."""

    def __init__(self, config: XeusConfig, index: int, channels: int) -> None:
        super().__init__()
        width, kernel, stride = config.convolutions[index]
        self.conv = nn.Conv1d(channels, width, kernel, stride, bias=config.has_bias)
        self.layer_norm: nn.Module | None = None
        if config.norm == "layer_norm":
            self.layer_norm = nn.LayerNorm(width)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.LayerNorm):
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.layer_norm is not None:
            x = self.layer_norm(x)
        return functional.gelu(x)


class Encoder(nn.Module):
    """Encoder blocks with a final norm: frames [B, T, H] to features [B, T, H]."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        self.embed = nn.ModuleList([Positions(config)])
        self.encoders = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.after_norm = nn.LayerNorm(config.hidden, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed[0](x)
        for block in self.encoders:
            x = block(x)
        return self.after_norm(x)


class Positions(nn.Module):
    """Convolutional position encoding, centred on each frame, whose output replaces its input."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        kernel = config.position_kernel
        width = config.hidden
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.position_groups)
        self.convs = nn.ModuleList([conv])

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.convs[0](x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


class Block(nn.Module):
    """E-Branchformer block with two feed-forward layers of weight 1/2: [B, T, H] to [B, T, H]."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        width = config.hidden
        kernel = config.merge_kernel
        self.feed_forward_macaron = FeedForward(config)
        self.feed_forward = FeedForward(config)
        self.attn = SelfAttention(config)
        self.cgmlp = GatedBranch(config)
        self.depthwise_conv_fusion = nn.Conv1d(2 * width, 2 * width, kernel, padding=kernel // 2, groups=2 * width)
        self.merge_proj = nn.Linear(2 * width, width)
        self.norm_ff_macaron = nn.LayerNorm(width, EPS)
        self.norm_ff = nn.LayerNorm(width, EPS)
        self.norm_mha = nn.LayerNorm(width, EPS)
        self.norm_mlp = nn.LayerNorm(width, EPS)
        self.norm_final = nn.LayerNorm(width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feed_forward_macaron(self.norm_ff_macaron(x))
        both = torch.cat([self.attn(self.norm_mha(x)), self.cgmlp(self.norm_mlp(x))], dim=-1)
        x = x + self.merge_proj(both + along_time(self.depthwise_conv_fusion, both))
        x = x + 0.5 * self.feed_forward(self.norm_ff(x))
        return self.norm_final(x)


class SelfAttention(nn.Module):
    """Unmasked self-attention: [B, T, H] to [B, T, H]."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (
            nn.Linear(config.hidden, config.hidden) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.linear_out(seen.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.hidden, config.feed_forward)
        self.w_2 = nn.Linear(config.feed_forward, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(functional.silu(self.w_1(x)))


class GatedBranch(nn.Module):
    """Layer that multiplies one half of its channels by the other, convolved over time: [B, T, H] to [B, T, H]."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        self.channel_proj1 = nn.Sequential(nn.Linear(config.hidden, config.gate), nn.GELU())
        self.csgu = Gate(config)
        self.channel_proj2 = nn.Linear(config.gate // 2, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_proj2(self.csgu(self.channel_proj1(x)))


class Gate(nn.Module):
    """Gating unit of the gated branch: [B, T, G] to [B, T, G / 2]."""

    def __init__(self, config: XeusConfig) -> None:
        super().__init__()
        width = config.gate // 2
        kernel = config.gate_kernel
        self.norm = nn.LayerNorm(width, EPS)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = x.chunk(2, dim=-1)
        return kept * along_time(self.conv, self.norm(gate))


def along_time(convolution: nn.Module, x: Tensor) -> Tensor:
    """Apply `convolution` over the time dimension of frames [B, T, C]."""
    return convolution(x.transpose(1, 2)).transpose(1, 2)


WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
CENTRES = "cluster_centers_"
NUMBERS = frozenset({"f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})  # numpy dtype names


class Record:
    """Stand-in for a pickled object, which is not constructed: constructor name, arguments and state."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class RecordReader(pickle._Unpickler):
    """Unpickler of joblib files that returns Records and arrays instead of constructing objects."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._file = file

    def find_class(self, module: str, name: str) -> type[Record]:
        """Return a subclass of Record named after the requested class, which is not imported."""
        return type(name, (Record,), {"name": f"{module}.{name}"})

    def load_build(self) -> None:
        """Set an object's state; replace joblib's array wrapper with the array that follows it in the file."""
        super().load_build()  # type: ignore[misc]
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        if isinstance(stack[-1], Record) and stack[-1].name == WRAPPER:
            stack[-1] = _read_array(self._file, stack[-1].state)

    dispatch[pickle.BUILD[0]] = load_build


def _read_array(file: BinaryIO, state: dict[str, Any]) -> np.ndarray:
    dtype = _dtype(state["dtype"])
    shape = tuple(state["shape"])
    if state.get("numpy_array_alignment_bytes") is not None:
        file.read(file.read(1)[0])
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    array = np.frombuffer(file.read(num_bytes), dtype)
    return array.reshape(shape[::-1]).T if state["order"] == "F" else array.reshape(shape)


def _dtype(record: Record) -> np.dtype:
    """Return the dtype of a pickled numpy.dtype; index 1 of its state is the byte order."""
    name = record.args[0]
    order = record.state[1]
    if record.name != "numpy.dtype" or name not in NUMBERS:
        raise ValueError(f"expected arrays of numbers, got {record.name} {name!r}")
    return np.dtype(name).newbyteorder(order)


def read_centres(path: Path) -> np.ndarray:
    """Return the centres, float32 [C, H], of the k-means model in a joblib file, or raise CheckpointError."""
    try:
        with regular_file(path).open("rb") as file:
            if file.peek(1)[:1] != pickle.PROTO:
                raise pickle.UnpicklingError("not a pickle file")
            model = RecordReader(file).load()
        centres = model.state[CENTRES]
        if centres.ndim != 2 or not np.isfinite(centres).all():
            raise ValueError(f"{CENTRES} must be a matrix of finite numbers; its shape is {list(centres.shape)}")
    except (OSError, EOFError, MemoryError, pickle.UnpicklingError, struct.error) as error:
        expected = "a k-means model as joblib writes it, uncompressed"
        raise CheckpointError(f"{path}: expected {expected}, got {error!r}") from error
    except UNPARSABLE as error:
        raise CheckpointError(f"{path}: expected a k-means model with {CENTRES}, got {error!r}") from error
    return np.array(centres, np.float32, order="C")


FOLDER = "ssl_tokenizer"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


class XeusTokenizer(nn.Module):
    """XEUS followed by k-means: a code is the index of the nearest centre in `centres` [C, H]."""

    centres: Tensor

    def __init__(self, config: XeusConfig, num_codes: int) -> None:
        super().__init__()
        self.config = config
        self.xeus = Xeus(config)
        self.register_buffer("centres", torch.zeros(num_codes, config.hidden))

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono `pcm`, float32 [n] at 16 kHz, to 50 codes per second, int64 [T], T = `config.num_frames(n)`."""
        if self.config.num_frames(len(pcm)) == 0:
            return np.zeros(0, np.int64)
        features = self.xeus(torch.from_numpy(np.asarray(pcm)).to(self.centres))
        # squared distances without the term common to all centres
        distances = self.centres.square().sum(1) - 2 * features @ self.centres.T
        return distances.argmin(1).cpu().numpy()


def load_ssl_tokenizer(checkpoint: Path, num_codes: int, device: str = "cpu") -> XeusTokenizer | None:
    """Load a checkpoint's semantic tokenizer, or return None if it has none; raise CheckpointError if it is invalid.

    Args:
        num_codes: Number of semantic codes in the language model's vocabulary.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        return None
    try:
        config = XeusConfig.from_record(json_object(folder / CONFIG))
        tensors = load_file(regular_file(folder / WEIGHTS))
    except (CheckpointError, OSError, SafetensorError, *UNPARSABLE) as error:
        raise CheckpointError(f"{folder}: expected {CONFIG} and {WEIGHTS} of XEUS, got {error!r}") from error
    with torch.device("meta"):
        tokenizer = XeusTokenizer(config, num_codes)
    load_strictly(tokenizer, tensors, folder, assign=True)
    return tokenizer.eval().requires_grad_(False).to(device)
