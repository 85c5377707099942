"""`moss`: MOSS-Audio-Tokenizer, a codec of causal transformers (24 kHz, 12.5 frames per second, 32 codebooks of 1024).

codes ─► sum of codebook vectors ─► transformer ─► ×2 ─► transformer ─► ×2 ─► transformer ─► ×2 ─► transformer ─► pcm
                                    125 steps back      250                  500                  1000 steps back

Version 2 (48 kHz, two channels whose samples alternate) has the same networks. `moss_nano`, MOSS-Audio-Tokenizer-Nano,
has smaller ones, which take four steps for each vector of codebooks. Here, both channels get the same recording, and
the decoded channels are averaged.

There are no convolutions: a step becomes several steps (or samples) by splitting its channels. The encoder does the
opposite, and its stages have the reverse order. Every transformer attends to the last 10 s. Its keys and values are the
state, which is therefore large (170 MB an utterance in float32), and chunks of any size are exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful
from stretto.codecs.memory import CausalCodec, Memory, encoded_parts, num_kept
from stretto.codecs.residual_codebooks import Quantizer, QuantizerConfig, projected
from stretto.codecs.rotary_attention import (
    Layer,
    TransformerConfig,
    can_launch,
    frequencies_of,
    run_layers,
)
from stretto.codecs.streaming import prepare_products
from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import CONFIG_FILE, codec_directory, in_float32, load_strictly, open_tensors

MODEL_TYPES = ("speech_tokenizer", "moss-audio-tokenizer")  # in the published file, and of the authors' class
MAX_BATCH = 8  # windows; a decode copies the states, of 170 MB each
MAX_SIZE = 1 << 16  # of every number of a network
# No weight depends on the length of the attention window. The published state has 42,358,784 numbers.
MAX_STATE = 1 << 26  # numbers of the keys and values of all layers of the encoder, or of the decoder
RLFQ = ("rlfq", "random_prefix_rlfq")  # names of the same quantiser
# Values of a transformer's section that this codec needs, and those of a release that does not state them.
NEEDED = {"causal": (True, False), "gating": ("none", "none"), "norm": ("layer_norm", "layer_norm")}
NEEDED |= {"positional_embedding": ("rope", "sin"), "conv_layout": (True, False)}
# Parts of the names of tensors. The authors have two classes, with other names of the same layers.
RENAMED = {
    ".in_projs.0.": ".in_proj.",
    ".out_projs.0.": ".out_proj.",
    ".ffn.0.": ".linear1.",
    ".ffn.2.": ".linear2.",
}
HAS_PREFIXES = True  # trained with random numbers of codebooks
MARKS = {"quantizer.quantizers.0.in_proj.parametrizations.weight.original0": "MOSS-Audio-Tokenizer"}


@dataclass(frozen=True, slots=True)
class StageConfig:
    """Hyperparameters of a transformer and its projections.

    Attributes:
        inputs: Channels before the input projection.
        outputs: Channels after the output projection.
        rate: Number of the transformer's steps in a frame.
        has_scales: True if residual branches are scaled.
    """

    transformer: TransformerConfig
    inputs: int
    outputs: int
    rate: int
    has_scales: bool


@dataclass(frozen=True, slots=True)
class MossConfig:
    """Hyperparameters of a release.

    Attributes:
        num_channels: Number of channels, whose samples alternate in the input and output of the network.
        patches: Number of steps, or samples, that become one step before each transformer of the encoder.
        decoder: Transformers of the decoder. Each is followed by one of `decoder_patches`.
        decoder_patches: Number of steps, or samples, that a step becomes after each transformer of the decoder.
        inner_patch: Number of steps that make one vector of the quantizer, in the transformers next to it.
        keeps_square: True if a transformer has projections even between equal widths, as in the authors' newer class.
    """

    sample_rate: int
    samples_per_frame: int
    num_channels: int
    quantizer: QuantizerConfig
    patches: tuple[int, ...]
    encoder: tuple[StageConfig, ...]
    decoder: tuple[StageConfig, ...]
    decoder_patches: tuple[int, ...]
    inner_patch: int = 1
    keeps_square: bool = False

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "MossConfig":
        """Return the hyperparameters in config.json; raise CheckpointError if one is missing or not supported."""
        try:
            if record["model_type"] not in MODEL_TYPES:
                raise ValueError(f"model_type: expected {' or '.join(MODEL_TYPES)}, got {shown(record['model_type'])}")
            numbers = record["quantizer_kwargs"]
            quantizer_type = numbers.get("quantizer_type", record.get("quantizer_type", "rvq"))
            num_channels = record.get("number_channels", 1)
            alternate = record.get("enable_channel_interleave", True)
            if (
                quantizer_type not in RLFQ
                or type(num_channels) is not int
                or num_channels not in (1, 2)
                or alternate is not True
            ):
                got = f"{shown(num_channels)}, {shown(alternate)} and {shown(quantizer_type)}"
                expected = "number_channels 1 or 2, enable_channel_interleave true and quantizer_type rlfq"
                raise ValueError(f"expected {expected}, got {got}")
            quantizer = QuantizerConfig(**{name: numbers[name] for name in QuantizerConfig.__slots__})
            patches, encoder, inner_patch = _halves(record, "encoder_kwargs", is_encoder=True)
            decoder_patches, decoder, decoder_inner = _halves(record, "decoder_kwargs", is_encoder=False)
            hop = record["downsample_rate"]
            products = {prod(patches) * inner_patch, prod(decoder_patches) * decoder_inner}
            if products != {hop * num_channels} or inner_patch != decoder_inner:
                expected = f"the product of the patch sizes by {num_channels} (number_channels)"
                raise ValueError(f"downsample_rate: expected {expected}, got {hop}")
            _check_numbers(quantizer, *(stage.transformer for stage in (*encoder, *decoder)))
            rate = record["sampling_rate"]
            config = cls(rate, hop, num_channels, quantizer, patches, encoder, decoder, decoder_patches, inner_patch)
            config.check_widths()
            for name, stages in (("encoder_kwargs", encoder), ("decoder_kwargs", decoder)):
                _check_state(name, stages)
            return config
        except (*UNPARSABLE, TypeError) as error:
            raise CheckpointError(f"config.json: cannot be read as MOSS-Audio-Tokenizer: {error!r}") from error

    def check_widths(self) -> None:
        """Raise ValueError unless each part has as many output channels as the next part has input channels."""
        ends = [1, *(stage.outputs for stage in self.encoder[:-1]), self.encoder[-1].outputs * self.inner_patch]
        read = [*(s.inputs // patch for s, patch in zip(self.encoder, self.patches, strict=True))]
        ends.append(self.quantizer.output_dim)
        read += [self.quantizer.input_dim]
        split = [s.outputs // patch for s, patch in zip(self.decoder, self.decoder_patches, strict=True)]
        ends += split
        read += [self.decoder[0].inputs * self.inner_patch, *(stage.inputs for stage in self.decoder[1:]), 1]
        exact = all(s.inputs % patch == 0 for s, patch in zip(self.encoder, self.patches, strict=True))
        exact &= all(s.outputs % patch == 0 for s, patch in zip(self.decoder, self.decoder_patches, strict=True))
        if ends != read or not exact:
            raise ValueError(f"expected parts that fit together, got outputs {ends} and inputs {read}")


def _check_numbers(*parts: QuantizerConfig | TransformerConfig) -> None:
    """Raise ValueError if a size is not in [1, MAX_SIZE], or `d_model` is no multiple of twice the heads."""
    for numbers in parts:
        for field in fields(numbers):
            value = getattr(numbers, field.name)
            if field.type is int and not (isinstance(value, int) and 1 <= value <= MAX_SIZE):
                raise ValueError(f"{field.name}: expected an integer in [1, {MAX_SIZE}], got {shown(value)}")
        if isinstance(numbers, TransformerConfig) and numbers.d_model % (2 * numbers.num_heads):
            raise ValueError(f"d_model: expected a multiple of 2 * {numbers.num_heads}, got {numbers.d_model}")


def _check_state(name: str, stages: tuple[StageConfig, ...]) -> None:
    """Raise ValueError if the keys and values of the attention windows exceed MAX_STATE."""
    parts = [stage.transformer for stage in stages]
    size = sum(2 * (transformer.context - 1) * transformer.d_model * transformer.num_layers for transformer in parts)
    if size > MAX_STATE:
        expected = f"windows whose keys and values are at most {MAX_STATE} numbers (the published 10 s have 42358784)"
        raise ValueError(f"causal_transformer_context_duration, {name}: expected {expected}, got {size}")


def _halves(
    record: Mapping[str, Any], name: str, is_encoder: bool
) -> tuple[tuple[int, ...], tuple[StageConfig, ...], int]:
    """Return the patch sizes and the transformers of the encoder or the decoder, in which the two alternate.

    The last value is the size of a further patch, next to the quantizer; 1 if there is none.
    """
    kinds = ("PatchedPretransform", "Transformer") if is_encoder else ("Transformer", "PatchedPretransform")
    parts = record[name]
    inner_patch = 1
    if len(parts) % 2:
        inner_patch = _patch_size(parts[-1 if is_encoder else 0])
        parts = parts[:-1] if is_encoder else parts[1:]
    if not parts or [section["module_type"] for section in parts] != [*kinds] * (len(parts) // 2):
        raise ValueError(f"{name}: expected {kinds[0]} and {kinds[1]} alternately")
    first = parts[::2]
    second = parts[1::2]
    patches, stages = (first, second) if is_encoder else (second, first)
    sizes = tuple(_patch_size(patch) for patch in patches)
    hop = prod(sizes) * inner_patch
    seconds = record["causal_transformer_context_duration"]
    rate = record["sampling_rate"] * record.get("number_channels", 1)
    built = []
    left = hop if is_encoder else hop // inner_patch
    for size, stage in zip(sizes, stages, strict=True):
        left = left // size if is_encoder else left
        odd = {key: stage.get(key, usual) for key, (value, usual) in NEEDED.items() if stage.get(key, usual) != value}
        if odd:
            raise ValueError(f"{name}: expected { ({key: NEEDED[key][0] for key in odd}) }, got {odd}")
        steps_per_frame = left if is_encoder else hop // left
        transformer = TransformerConfig(
            d_model=stage["d_model"],
            num_heads=stage["num_heads"],
            num_layers=stage["num_layers"],
            dim_feedforward=stage["dim_feedforward"],
            context=int(rate / hop * steps_per_frame * stage.get("context_duration", seconds)),
            max_period=stage.get("max_period", 10_000.0),
            gelu="erf",
        )
        has_scales = stage.get("layer_scale") is not None
        built.append(
            StageConfig(transformer, stage["input_dimension"], stage["output_dimension"], steps_per_frame, has_scales)
        )
        left = left if is_encoder else left // size
    return sizes, tuple(built), inner_patch


def _patch_size(section: Mapping[str, Any]) -> int:
    size = section["patch_size"]
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        raise ValueError(f"patch_size: expected an integer in [1, {MAX_SIZE}], got {shown(size)}")
    return size


def _joined(x: Tensor, patch: int) -> Tensor:
    """Return steps [B, n, C] as [B, n / patch, C * patch]."""
    return x.unflatten(1, (-1, patch)).transpose(2, 3).flatten(2)


def _split(x: Tensor, patch: int) -> Tensor:
    """Return steps [B, n, C] as [B, n * patch, C / patch]."""
    return x.unflatten(2, (-1, patch)).transpose(2, 3).flatten(1, 2)


class Stage(nn.Module):
    """Transformer with its projections."""

    frequencies: Tensor

    def __init__(self, config: StageConfig, keeps_square: bool) -> None:
        super().__init__()
        transformer = config.transformer
        width = config.transformer.d_model
        self.rate = config.rate
        self.input_proj = _projection(config.inputs, width, keeps_square)
        self.layers: Any = nn.ModuleList(Layer(transformer, config.has_scales) for _ in range(transformer.num_layers))
        self.output_proj = _projection(width, config.outputs, keeps_square)
        self.register_buffer("frequencies", frequencies_of(transformer), persistent=False)

    def forward(self, x: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Return the outputs [B, n, C] of n steps. `first` [B] is the index of the first frame."""
        first = first * self.rate
        has_kernels = can_launch(self.layers, x)
        x = projected(x, self.input_proj) if has_kernels else self.input_proj(x)
        x = run_layers(self.layers, x, first, self.frequencies, memory)
        return projected(x, self.output_proj) if has_kernels else self.output_proj(x)


def _projection(inputs: int, outputs: int, keeps_square: bool) -> nn.Module:
    is_needed = inputs != outputs or keeps_square
    return nn.Linear(inputs, outputs, bias=False) if is_needed else nn.Identity()


class MossCodec(CausalCodec):
    """MOSS-Audio-Tokenizer. The state consists of the decoder's keys and values. Windows need no context frames."""

    def __init__(self, config: MossConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.ModuleList(Stage(stage, config.keeps_square) for stage in config.encoder)
        self.quantizer = Quantizer(config.quantizer)
        self.decoder = nn.ModuleList(Stage(stage, config.keeps_square) for stage in config.decoder)
        self.state_size = num_kept(self.decoder)
        self.spec = CodecSpec(
            name="moss" if config.inner_patch == 1 else "moss_nano",
            sample_rate=config.sample_rate,
            samples_per_frame=config.samples_per_frame,
            num_codebooks=config.quantizer.num_quantizers,
            codebook_size=config.quantizer.codebook_size,
            streaming=Stateful(),
            reads_rows=True,
            max_batch=MAX_BATCH,
        )

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T], T = n // samples_per_frame."""
        hop = self.spec.samples_per_frame
        channels = self.config.num_channels
        samples = torch.from_numpy(pcm[: len(pcm) // hop * hop]).to(next(self.parameters()))
        samples = samples.repeat_interleave(channels)
        hop = hop * channels
        state = samples.new_zeros(1, num_kept(self.encoder))
        parts = [np.zeros((self.spec.num_codebooks, 0), np.int64)]
        for block, first, memory in encoded_parts(samples, hop, state):
            x = block[None, :, None]
            for patch, stage in zip(self.config.patches, self.encoder, strict=True):
                x = stage(_joined(x, patch), first, memory)
            x = _joined(x, self.config.inner_patch)
            parts.append(self.quantizer.encode(x, self.spec.num_codebooks)[0].cpu().numpy())
        return np.concatenate(parts, 1)

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        x = _split(self.quantizer.decode(codes), self.config.inner_patch)
        for patch, stage in zip(self.config.decoder_patches, self.decoder, strict=True):
            x = _split(stage(x, first, memory), patch)
        return x[..., 0].unflatten(1, (-1, self.config.num_channels)).mean(2).clamp(-1, 1)


def plain_names(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published tensors under the names of `MossCodec`, with weight norms multiplied out.

    The published numbers also count modules without weights, so transformers have every second number.
    """
    plain = dict[str, Tensor]()
    for name, tensor in stored.items():
        words = name.split(".")
        if words[0] in ("encoder", "decoder") and len(words) > 1 and words[1].isdecimal():
            words[1] = str(int(words[1]) // 2)
            words = [word for at, word in enumerate(words) if (at, word) != (2, "transformer")]
            renamed = ".".join(words)
            for theirs, ours in RENAMED.items():
                renamed = renamed.replace(theirs, ours)
        elif name.endswith(".original1"):
            continue
        elif name.endswith(".parametrizations.weight.original0"):
            stem = name.removesuffix("original0")
            direction = stored.get(f"{stem}original1")
            if direction is None or direction.ndim != 3 or tensor.shape != (len(direction), 1, 1):
                raise CheckpointError(f"{name}: expected the norms of {stem}original1, got {list(tensor.shape)}")
            tensor = torch._weight_norm(direction, tensor, 0)[..., 0]
            renamed = name.replace(".parametrizations.weight.original0", ".weight")
        else:
            renamed = name
        plain[renamed] = tensor
    return plain


def read_config(directory: Path) -> MossConfig:
    """Return the hyperparameters of the release in a folder; raise CheckpointError if it is not supported."""
    try:
        return MossConfig.from_record(json_object(directory / CONFIG_FILE))
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error


def load(directory: Path, device: str = "cpu") -> MossCodec:
    """Load the codec of a checkpoint; raise CheckpointError if a file is missing or does not fit the codec."""
    directory = codec_directory(directory)
    config = read_config(directory)
    tensors = plain_names(in_float32(dict(open_tensors(directory)), directory))
    with torch.device("meta"):
        codec = MossCodec(replace(config, keeps_square=has_square_projections(config, tensors)))
    load_strictly(codec, tensors, directory, assign=True)
    return prepare_products(codec.eval().requires_grad_(False).to(device))


def has_square_projections(config: MossConfig, tensors: Mapping[str, Tensor]) -> bool:
    """Return True if there are projections between equal widths. `tensors` have the names of `MossCodec`."""
    stages = {"encoder": config.encoder, "decoder": config.decoder}
    return any(
        (stage.inputs == stage.transformer.d_model and f"{half}.{number}.input_proj.weight" in tensors)
        or (stage.outputs == stage.transformer.d_model and f"{half}.{number}.output_proj.weight" in tensors)
        for half, halves in stages.items()
        for number, stage in enumerate(halves)
    )


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    quantizer = read_config(directory).quantizer
    return quantizer.num_quantizers, quantizer.codebook_size
