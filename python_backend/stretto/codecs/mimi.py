"""`mimi`: Mimi in transformers format (24 kHz, 12.5 frames per second; Défossez et al., 2024).

codes ─► codebooks ─► ×2 ─► transformer ─► conv ─► 4 × (↑ 8, 6, 5, 4, residual block) ─► conv ─► pcm
                  1 back   249 steps back  6 back  1 and 2 steps back each              2 back

All layers are causal, and store their last inputs in the state. They share their weights with transformers' classes,
whose own `decode` with past keys and values is not exact, because its convolutions have no state. `encode` is
transformers' own; `mimi_encoder` has a streaming encoder.
"""

from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel
from transformers.models.mimi.modeling_mimi import (
    MimiConv1d,
    MimiConvTranspose1d,
    MimiResnetBlock,
    MimiTransformerLayer,
)

from stretto.codecs import device
from stretto.codecs.base import Codec, CodecSpec, Stateful
from stretto.codecs.causal import Convolution, Downsampling, ResidualBlock, Upsampling, run
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.memory import CausalCodec, Memory, num_kept
from stretto.codecs.qwen3_12hz.decoder import Attention, TransformerShape
from stretto.codecs.rotary_attention import run_layers
from stretto.codecs.seanet import keep_lengths_on_host
from stretto.codecs.streaming import Elu, prepare, prepare_products
from stretto.errors import CheckpointError, shown
from stretto.weights.loading import codec_directory
from stretto.weights.pretrained import load_config, load_model

STEPS = 2  # transformer steps per frame
MARKS = {"decoder.layers.0.conv.weight": "a codec of Mimi's kind"}
TRANSFORMERS = MimiConfig, MimiModel
SERVED = {
    "use_causal_conv": True,
    "pad_mode": "constant",
    "audio_channels": 1,
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "attention_bias": False,
    "hidden_act": "gelu",
}


def causal(layer: nn.Module) -> nn.Module:
    """Return a streaming layer with the weights of a layer of transformers' Mimi."""
    if isinstance(layer, nn.ELU):
        return Elu()
    if isinstance(layer, MimiResnetBlock):
        return ResidualBlock(map(causal, layer.block))
    assert isinstance(layer, MimiConv1d | MimiConvTranspose1d)
    conv = layer.conv
    (kernel,) = conv.kernel_size
    (rate,) = conv.stride
    channels = conv.in_channels, conv.out_channels
    same: Convolution | Upsampling | Downsampling
    with torch.device("meta"):
        if isinstance(layer, MimiConvTranspose1d):
            same = Upsampling(*channels, kernel, rate, groups=conv.groups)
        elif rate > 1:
            same = Downsampling(*channels, rate, repeats_first=layer.pad_mode == "replicate")
        else:
            same = Convolution(*channels, kernel, conv.dilation[0])
    same.conv = conv
    return same


def attention_of(layer: MimiTransformerLayer) -> Attention:
    """Return a streaming attention layer with the weights of `layer`; it keeps its keys and values in the state."""
    published = layer.self_attn
    config = published.config
    shape = TransformerShape(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        sliding_window=config.sliding_window,
        rope_theta=config.rope_parameters["rope_theta"],
        rms_norm_eps=config.norm_eps,
    )
    with torch.device("meta"):
        attention = Attention(shape)
    attention.q_proj = published.q_proj
    attention.k_proj = published.k_proj
    attention.v_proj = published.v_proj
    attention.o_proj = published.o_proj
    return attention


class Layer:
    """Layer of the transformer, with transformers' weights."""

    def __init__(self, published: MimiTransformerLayer) -> None:
        self._published = published
        self.self_attn = attention_of(published)

    def __call__(self, x: Tensor, rotation: tuple[Tensor, Tensor], is_seen: Tensor, memory: Memory) -> Tensor:
        layer = self._published
        attended = self.self_attn(layer.input_layernorm(x), rotation, is_seen, memory)
        x = x + layer.self_attn_layer_scale(attended)
        return x + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(x)))

    def launch(self, x: Tensor, window: device.Window, memory: Memory) -> Tensor:
        """Return the outputs [B, n, C] on a GPU, in five launches."""
        layer = self._published
        attention = self.self_attn
        weight = device.joined_weight([attention.q_proj, attention.k_proj, attention.v_proj])
        state = memory.part(attention.kept, x.shape[1])
        last = attention.o_proj, layer.self_attn_layer_scale.scale
        x = device.attend(x, device.norm_of(layer.input_layernorm), weight, attention.sizes, window, state, last)
        norm = device.norm_of(layer.post_attention_layernorm)
        wide = device.multiply(x, layer.mlp.fc1.weight, None, norm, device.Ending(activation="gelu"))
        ending = device.Ending(gain=layer.mlp_layer_scale.scale, residual=x)
        return device.multiply(wide, layer.mlp.fc2.weight, ending=ending)


class MimiCodec(CausalCodec):
    """Mimi with an exact streaming decoder, whose state [B, D] has the last inputs of all its layers."""

    def __init__(self, model: MimiModel) -> None:
        super().__init__()
        config = model.config
        check(config)
        self.model = model
        # In lists, because the model has registered their weights.
        self._upsample = [causal(model.upsample)]
        self._layers = [Layer(layer) for layer in model.decoder_transformer.layers]
        self._decoder = [causal(layer) for layer in model.decoder.layers]
        self.state_size = num_kept(*self._upsample, *self._decoder, *(layer.self_attn for layer in self._layers))
        self._codebooks: device.SplitCodebooks | None = None
        self.spec = CodecSpec(
            name="mimi",
            sample_rate=config.sampling_rate,
            samples_per_frame=prod(config.upsampling_ratios) * STEPS,
            num_codebooks=config.num_quantizers,
            codebook_size=config.codebook_size,
            streaming=Stateful(),
            reads_rows=True,
        )

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode mono samples, float32 [n], to codes, int64 [K, T]; the last frame may be shorter than the others."""
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(np.asarray(pcm)).to(next(self.parameters()))
        codes = self.model.encode(samples[None, None], num_quantizers=self.spec.num_codebooks)[0]
        return codes[0].cpu().numpy()

    def samples(self, codes: Tensor, first: Tensor, memory: Memory) -> Tensor:
        x = self._upsample[0](self._latents(codes), memory)
        frequencies = self.model.decoder_transformer.rotary_emb.inv_freq
        x = run_layers(self._layers, x.transpose(1, 2), first * STEPS, frequencies, memory)
        return run(self._decoder, x.transpose(1, 2), memory)[:, 0].clamp(-1, 1)

    def _latents(self, codes: Tensor) -> Tensor:
        """Return the sums [B, C, n] of the entries of codes [B, K, n]."""
        quantizer = self.model.quantizer
        halves = quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer
        projections = [half.output_proj for half in halves]
        if None in projections or not runs_kernels(projections[0].weight):
            return quantizer.decode(codes)
        if self._codebooks is None or self._codebooks.weight.device != codes.device:
            books = [layer.codebook for half in halves for layer in half.layers]
            self._codebooks = device.split_codebooks([book.embed for book in books], projections)
            for book, entries in zip(books, self._codebooks.entries, strict=True):
                book._embed = entries  # of the vectors that `embed` returns
        return self._codebooks.sum_of(codes, quantizer.num_semantic_quantizers)


def check(config: MimiConfig) -> None:
    """Raise CheckpointError if Mimi has look-ahead, other layers or rotations, or an upsampling factor other than 2."""
    odd = {name: getattr(config, name) for name, value in SERVED.items() if getattr(config, name) != value}
    if odd:
        raise CheckpointError(f"mimi: expected { {name: SERVED[name] for name in odd} }, got {shown(odd)}")
    rotation = (config.rope_parameters or {}).get("rope_type")
    if rotation != "default":
        raise CheckpointError(f"mimi: rope_parameters.rope_type: expected 'default', got {shown(rotation)}")
    if config.encodec_frame_rate != STEPS * config.frame_rate:
        raise CheckpointError(
            f"mimi: encodec_frame_rate must be twice {config.frame_rate}, got {config.encodec_frame_rate}"
        )


def load(directory: Path, device: str = "cpu") -> MimiCodec:
    """Load the codec of a published checkpoint."""
    directory = codec_directory(directory)
    check(load_config(MimiConfig, directory))
    model, _ = load_model(MimiModel, directory)
    codec = prepare_products(MimiCodec(model).to(device))
    prepare(model.decoder)
    keep_lengths_on_host(codec)
    return codec


def published_shape(directory: Path) -> tuple[int, int]:
    """Return the number of codebooks and the codebook size of the codec published in `directory`."""
    config = load_config(MimiConfig, directory)
    return config.num_quantizers, config.codebook_size


def require_mimi(codec: Codec, family: str) -> MimiCodec:
    """Return `codec` if it is Mimi; otherwise raise CheckpointError with a message that contains `family`."""
    if not isinstance(codec, MimiCodec):
        raise CheckpointError(f"{family}: expected the codec mimi, got {codec.spec.name}")
    return codec
