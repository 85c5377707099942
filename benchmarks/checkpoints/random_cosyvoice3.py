"""CosyVoice 3's decoder as published, with random weights that give audible output: narrow, or of published width.

Weights are drawn by numpy in the order of their names, so that an external reference has the same ones.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.checkpoints.random_glm4_voice import as_published, random_vocoder, random_weights
from benchmarks.checkpoints.random_s3gen import DIRECTION, MAGNITUDE
from stretto.codecs.cosyvoice.dit import DitShape
from stretto.codecs.cosyvoice3 import CHUNK, CosyVoice3Codec, CosyVoice3Config, prepared
from stretto.codecs.s3gen import FRAMES_PER_TOKEN, HEAD_WIDTH, vocoder_shape

NUM_CODES, MELS, SPEAKER = 6561, 80, 192
SEEDS = (0, 1)  # of the releases that the authors' code decoded
NARROW = CosyVoice3Config(
    codebook_size=NUM_CODES,
    mels=MELS,
    speaker=SPEAKER,
    inner=24,
    estimator=DitShape(width=64, layers=2, heads=2, head_width=HEAD_WIDTH, inner=128, chunk=FRAMES_PER_TOKEN * CHUNK),
    vocoder=vocoder_shape(channels=16, pitch_channels=8, is_causal=True),
)
WIDE = replace(
    NARROW,
    inner=1024,
    estimator=DitShape(
        width=1024, layers=22, heads=16, head_width=HEAD_WIDTH, inner=2048, chunk=FRAMES_PER_TOKEN * CHUNK
    ),
    vocoder=vocoder_shape(channels=512, pitch_channels=512, is_causal=True),
)


def tensors(config: CosyVoice3Config = NARROW, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of `flow` and `hift` by published name."""
    codec, rng = CosyVoice3Codec(config), np.random.default_rng(seed)
    flow, hift = random_weights(codec.flow, rng), random_vocoder(codec.hift, rng)
    return {"flow": flow | _rotation(codec), "hift": as_published(hift, MAGNITUDE, DIRECTION)}


def write_parts(folder: Path, config: CosyVoice3Config = NARROW, seed: int = 0) -> None:
    """Write `flow.pt` and `hift.pt`."""
    for name, part in tensors(config, seed).items():
        torch.save(part, folder / f"{name}.pt")


def write_codec(folder: Path, config: CosyVoice3Config = NARROW, seed: int = 0) -> Path:
    """Write the codec as converted, to `codec/`."""
    (folder / "codec").mkdir()
    parts = {f"{part}.{name}": each for part, named in tensors(config, seed).items() for name, each in named.items()}
    save_file(parts, folder / "codec" / "model.safetensors")
    return folder


def random_codec(config: CosyVoice3Config = NARROW, seed: int = 0) -> CosyVoice3Codec:
    """Return the codec with random weights."""
    codec, rng = CosyVoice3Codec(config), np.random.default_rng(seed)
    codec.flow.load_state_dict(random_weights(codec.flow, rng) | _rotation(codec))
    codec.hift.load_state_dict(random_vocoder(codec.hift, rng))
    return prepared(codec)


def _rotation(codec: CosyVoice3Codec) -> dict[str, Tensor]:
    name = "decoder.estimator.rotary_embed.inv_freq"
    return {name: codec.flow.state_dict()[name]}


def voice(seed: int, num_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tokens int32 [n], mel float32 [2 n, M] and x-vector float32 [E] of a voice."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(NUM_CODES, size=num_tokens).astype(np.int32),
        rng.standard_normal((FRAMES_PER_TOKEN * num_tokens, MELS), dtype=np.float32),
        rng.standard_normal(SPEAKER, dtype=np.float32),
    )
