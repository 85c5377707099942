"""`pocket`: Pocket TTS codec, a variant of Mimi for latents (24 kHz, 12.5 latents/s), exact for chunks of any size.

latent ─► conv ─► ↑16 ─► transformer ─► conv ─► 3 × (↑ 6, 5, 4, residual block) ─► conv ─► pcm
12.5 per second    1 back   249 steps back  6 back   1 and 2 steps back each         2 back

All layers are causal and store their last inputs in the state. Tensors are named as in the published file, which also
contains the language model. The first 5 ms of an utterance fade in, because its first sample is rarely 0. The encoder,
which some releases lack, has the same layers in reverse order. Its latents are not normalised.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Stateful
from stretto.codecs.causal import Convolution, Downsampling, ResidualBlock, Upsampling, run
from stretto.codecs.memory import CausalCodec, Memory, encoded_parts, num_kept
from stretto.codecs.rotary_attention import (
    GELU_FORMS,
    Layer,
    TransformerConfig,
    can_launch,
    frequencies_of,
    run_layers,
)
from stretto.codecs.streaming import Elu, prepare, prepare_products
from stretto.errors import CheckpointError, InvalidRequest
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import CONFIG_FILE, codec_directory, load_strictly, read_tensors

MODEL_TYPE = "pocket"
CONVTR = "convtr"  # published name of transposed convolutions
FADES_PER_S = 200  # 1 / duration of the fade-in in seconds
UNSERVED = {"channels": 1, "pad_mode": "constant", "n_residual_layers": 1}


@dataclass(frozen=True, slots=True)
class SeanetConfig:
    """Hyperparameters of the convolutions, under their published names."""

    dimension: int
    n_filters: int
    ratios: tuple[int, ...]
    kernel_size: int
    residual_kernel_size: int
    last_kernel_size: int
    compress: int


@dataclass(frozen=True, slots=True)
class PocketConfig:
    """Codec hyperparameters of a release."""

    num_words: int
    channels: int
    sample_rate: int
    stride: int
    seanet: SeanetConfig
    transformer: TransformerConfig
    encoder: tuple[SeanetConfig, TransformerConfig] | None = None

    @classmethod
    def from_record(cls, mimi: Mapping[str, Any], has_encoder: bool = False) -> "PocketConfig":
        """Return the config from section `mimi` of a release's YAML file; raise CheckpointError for another codec."""
        try:
            seanet, transformer = _half(mimi, "decoder_")
            hop = prod(seanet.ratios)
            frames = mimi["sample_rate"] / mimi["frame_rate"]
            encoder = _half(mimi, "") if has_encoder else None
            if frames % hop or not frames.is_integer() or (encoder and prod(encoder[0].ratios) != hop):
                expected = (
                    f"samples per frame must be an integer multiple of {hop}, and the encoder's hop must be {hop}"
                )
                raise ValueError(f"frame_rate {mimi['frame_rate']}: {expected}")
            return cls(
                num_words=mimi["quantizer"]["dimension"],
                channels=mimi["quantizer"]["output_dimension"],
                sample_rate=mimi["sample_rate"],
                stride=int(frames) // hop,
                seanet=seanet,
                transformer=transformer,
                encoder=encoder,
            )
        except (*UNPARSABLE, TypeError) as error:
            raise CheckpointError(f"mimi: cannot be read as the codec of Pocket TTS: {error!r}") from error


def _half(mimi: Mapping[str, Any], prefix: str) -> tuple[SeanetConfig, TransformerConfig]:
    """Return the config in the sections with `prefix`, or in those without a prefix if they are missing."""
    seanet = mimi.get(f"{prefix}seanet") or mimi["seanet"]
    stack = {"max_period": 10000.0, "gelu": "tanh"} | (mimi.get(f"{prefix}transformer") or mimi["transformer"])
    odd = {name: seanet[name] for name, value in UNSERVED.items() if seanet.get(name, value) != value}
    if stack["gelu"] not in GELU_FORMS:
        raise ValueError(f"gelu: expected one of {sorted(GELU_FORMS)}, got {stack['gelu']!r}")
    widths = {stack["input_dimension"], *stack["output_dimensions"]}
    if odd or widths != {seanet["dimension"]} or len(stack["output_dimensions"]) != 1:
        raise ValueError(f"expected {UNSERVED} and one width for all layers, got {odd} and widths {widths}")
    return (
        SeanetConfig(**_given(SeanetConfig, {**seanet, "ratios": tuple(seanet["ratios"])})),
        TransformerConfig(**_given(TransformerConfig, stack)),
    )


def _given(config_class: type, record: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: record[field.name] for field in fields(config_class)}


class Stack(nn.Module):
    """Layers of the transformer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(Layer(config) for _ in range(config.num_layers))


class Transformer(nn.Module):
    """Transformer between latents and convolutions."""

    frequencies: Tensor

    def __init__(self, config: TransformerConfig, dimension: int) -> None:
        super().__init__()
        width = config.d_model
        self.transformer = Stack(config)
        is_projected = width != dimension
        self.input_proj = nn.Linear(dimension, width, bias=False) if is_projected else nn.Identity()
        output = nn.Linear(width, dimension, bias=False) if is_projected else nn.Identity()
        self.output_projs = nn.ModuleList([output])
        self.register_buffer("frequencies", frequencies_of(config), persistent=False)

    def forward(self, x: Tensor, first: Tensor, memory: Memory) -> Tensor:
        """Return outputs [B, C, n] for x [B, C, n]. `first` [B] is the position of x's first step."""
        steps = x.transpose(1, 2)
        if can_launch(self.transformer.layers, x):
            steps = steps.contiguous()
        x = run_layers(self.transformer.layers, self.input_proj(steps), first, self.frequencies, memory)
        return self.output_projs[0](x).transpose(1, 2)


def residual_block(channels: int, config: SeanetConfig) -> ResidualBlock:
    inner = channels // config.compress
    wide = Convolution(channels, inner, config.residual_kernel_size)
    return ResidualBlock([Elu(), wide, Elu(), Convolution(inner, channels, 1)])


class SeanetEncoder(nn.Module):
    """Convolutions from samples to the steps of the transformer."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        channels = config.n_filters
        layers: list[nn.Module] = [Convolution(1, channels, config.kernel_size)]
        for ratio in reversed(config.ratios):
            layers += [residual_block(channels, config), Elu(), Downsampling(channels, 2 * channels, ratio)]
            channels *= 2
        self.model = nn.ModuleList([*layers, Elu(), Convolution(channels, config.dimension, config.last_kernel_size)])


class Seanet(nn.Module):
    """Convolutions from the steps of the transformer to samples."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        channels = config.n_filters << len(config.ratios)
        layers: list[nn.Module] = [Convolution(config.dimension, channels, config.kernel_size)]
        for ratio in config.ratios:
            layers += [Elu(), Upsampling(channels, channels // 2, 2 * ratio, ratio, name=CONVTR)]
            channels //= 2
            layers.append(residual_block(channels, config))
        self.model = nn.ModuleList([*layers, Elu(), Convolution(channels, 1, config.last_kernel_size)])


class Quantizer(nn.Module):
    """Projection of latents, which has this name in the published file although nothing is quantised."""

    def __init__(self, num_words: int, channels: int) -> None:
        super().__init__()
        self.output_proj = nn.Conv1d(num_words, channels, 1, bias=False)


class Upsample(nn.Module):
    """Upsampling from frames to transformer steps."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convtr = Upsampling(
            channels, out_channels, 2 * stride, stride, groups=out_channels, bias=False, name=CONVTR
        )


class Downsample(nn.Module):
    """Downsampling from transformer steps to frames."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = Downsampling(channels, out_channels, stride, bias=False, repeats_first=True)


class PocketCodec(CausalCodec):
    """Pocket TTS codec. Its state is the decoder's memory. Windows need no neighbouring frames."""

    emb_mean: Tensor
    emb_std: Tensor

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        seanet = config.seanet
        self.register_buffer("emb_mean", torch.zeros(config.num_words))
        self.register_buffer("emb_std", torch.ones(config.num_words))
        self.quantizer = Quantizer(config.num_words, config.channels)
        self.upsample = Upsample(config.channels, seanet.dimension, config.stride)
        self.decoder_transformer = Transformer(config.transformer, seanet.dimension)
        self.decoder = Seanet(seanet)
        self._stride = config.stride
        self._num_faded = config.sample_rate // FADES_PER_S
        self.spec = CodecSpec(
            name="pocket",
            sample_rate=config.sample_rate,
            samples_per_frame=config.stride * prod(seanet.ratios),
            num_codebooks=config.num_words,
            codebook_size=0,
            streaming=Stateful(),
            reads_rows=True,
            are_latents=True,
        )
        self.state_size = num_kept(self.upsample, self.decoder_transformer, self.decoder)
        self._has_encoder = config.encoder is not None
        if config.encoder is not None:
            seanet_encoder, transformer = config.encoder
            self.encoder = SeanetEncoder(seanet_encoder)
            self.encoder_transformer = Transformer(transformer, seanet_encoder.dimension)
            self.downsample = Downsample(seanet_encoder.dimension, config.num_words, config.stride)

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode samples, float32 [n], to latents as words, int32 [D, T]; raise InvalidRequest without an encoder.

        The last frame is padded with zeros.
        """
        if not self._has_encoder:
            raise InvalidRequest("audio", "no audio (this checkpoint cannot clone voices)", "audio")
        frame = self.spec.samples_per_frame
        whole = torch.from_numpy(np.pad(pcm, (0, -len(pcm) % frame))).to(self.emb_mean)
        state = self.emb_mean.new_zeros(1, num_kept(self.encoder, self.encoder_transformer, self.downsample))
        parts = []
        for samples, first, memory in encoded_parts(whole, frame, state):
            x = run(list(self.encoder.model), samples[None, None], memory)
            x = self.encoder_transformer(x, first * self._stride, memory)
            parts.append(self.downsample.conv(x, memory))
        return torch.cat(parts, 2)[0].float().cpu().view(torch.int32).numpy()

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        latents = codes.to(torch.int32).contiguous().view(torch.float32).to(self.emb_mean.dtype)
        x = self.quantizer.output_proj(latents * self.emb_std[:, None] + self.emb_mean[:, None])
        x = self.decoder_transformer(self.upsample.convtr(x, memory), first * self._stride, memory)
        pcm = run(list(self.decoder.model), x, memory)[:, 0]
        ramp = torch.linspace(0, 1, self._num_faded, device=pcm.device, dtype=pcm.dtype)
        begins = (first == 0)[:, None]
        pcm[:, : self._num_faded] = torch.where(begins, pcm[:, : self._num_faded] * ramp, pcm[:, : self._num_faded])
        return pcm.clamp(-1, 1)


def codec_shapes(config: PocketConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each codec tensor by name."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in PocketCodec(config).state_dict().items()}


def load(directory: Path, device: str = "cpu") -> PocketCodec:
    """Load the codec from a checkpoint; raise CheckpointError if a file is missing or does not fit the codec."""
    directory = codec_directory(directory)
    record = json_object(directory / CONFIG_FILE)
    if record.get("model_type") != MODEL_TYPE or not isinstance(record.get("mimi"), Mapping):
        raise CheckpointError(f"{directory / CONFIG_FILE}: expected model_type {MODEL_TYPE} with a section mimi")
    codec = PocketCodec(PocketConfig.from_record(record["mimi"], record.get("has_encoder") is True))
    path = directory / "model.safetensors"
    load_strictly(codec, read_tensors(path), path)
    codec.eval().requires_grad_(False).to(device)
    prepare_products(codec)
    prepare(codec.decoder)
    return codec
