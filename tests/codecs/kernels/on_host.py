"""A small decoder for Triton's interpreter, and activations as the kernels document them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.causal import SnakeBeta
from stretto.codecs.memory import Memory, num_kept
from stretto.codecs.qwen3_12hz.decoder import Decoder, DecoderShape
from stretto.codecs.streaming import prepare_products

# A decoder with every layer of Qwen3-TTS's, and as little arithmetic as possible: 12 samples a frame.
SHAPE = DecoderShape(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=8,
    sliding_window=3,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    codebook_size=16,
    codebook_dim=8,
    num_quantizers=3,
    latent_dim=8,
    decoder_dim=32,
    upsampling_ratios=(2,),
    upsample_rates=(3, 2),
)


def small_decoder() -> Decoder:
    """Return a decoder of SHAPE with random weights, whose activations differ between channels."""
    torch.manual_seed(0)
    decoder = Decoder(SHAPE).eval().requires_grad_(False)
    for name, weight in decoder.named_parameters():
        if name.endswith(("alpha", "beta", "embedding_sum")):
            nn.init.normal_(weight, std=0.3)
    return prepare_products(decoder)


def random_codes(batch: int, frames: int) -> Tensor:
    """Return codes [B, K, T] of SHAPE."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(SHAPE.codebook_size, (batch, SHAPE.num_quantizers, frames), generator=generator)


@torch.inference_mode()
def decoded(decoder: Decoder, codes: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Decode codes in chunks of `sizes` frames; return the samples [B, n] and the last state [B, D]."""
    state = torch.zeros(len(codes), num_kept(decoder))
    begin = 0
    parts = list[Tensor]()
    for size in sizes:
        first = torch.full((len(codes),), begin)
        memory = Memory(state, first, size)
        parts.append(decoder(codes[:, :, begin : begin + size], first, memory))
        assert memory.is_complete
        state = memory.after
        begin += size
    return torch.cat(parts, 1), state


F32 = np.float32
# sin(angle) = angle + angle³ · series(angle²) in [-π/2, π/2], highest power first
SERIES = [F32(power) for power in (2.600054131e-06, -1.98066147e-4, 8.333017118e-3, -1.666665673e-1)]
PI_PARTS = [F32(piece) for piece in (3.140625, 9.67502593994140625e-4, 1.50995799e-7)]


def snake_of(number: np.float32, rate: np.float32, height: np.float32) -> np.float32:
    """Compute the activation as the kernel documents it, with one rounding for each operation."""
    angle = rate * number
    turns = np.floor(angle * F32(0.318309886) + F32(0.5))
    for piece in PI_PARTS:
        angle = angle - turns * piece
    square = angle * angle
    series = SERIES[0]
    for coefficient in SERIES[1:]:
        series = series * square + coefficient
    sine = angle + angle * square * series
    return number + height * (sine * sine)


def activations_of(x: Tensor, rate: Tensor, height: Tensor) -> Tensor:
    """Return the activations of a signal [B, C, n], one number after another."""
    found = torch.empty_like(x)
    for batch, channel, step in np.ndindex(*x.shape):
        arguments = x[batch, channel, step], rate[channel], height[channel]
        found[batch, channel, step] = float(snake_of(*(F32(argument) for argument in arguments)))
    return found


def factors(channels: int) -> SnakeBeta:
    """Return a Snake with random factors."""
    snake = SnakeBeta(channels)
    nn.init.normal_(snake.alpha, generator=torch.Generator().manual_seed(2))
    nn.init.normal_(snake.beta, generator=torch.Generator().manual_seed(3))
    snake.join()
    return snake
