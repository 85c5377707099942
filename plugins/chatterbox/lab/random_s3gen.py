"""Chatterbox's S3Gen in the published layout, with random weights that give audible output.

It is narrow or has the published width. Weights are drawn by numpy in the order of their names, so that an external
reference can draw the same ones.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lab.releases.random_glm4_voice import DIRECTION, MAGNITUDE, as_published, random_vocoder, random_weights
from stretto.codecs.cosyvoice.flow import EncoderShape, EstimatorShape
from stretto.codecs.cosyvoice.shapes import HEAD_WIDTH, vocoder_shape
from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN
from stretto_chatterbox.s3gen import EPSILON, S3GenCodec, S3GenConfig

NUM_CODES = 6561
MELS = 80
SPEAKER = 192
UP_LAYERS = 4
NARROW = S3GenConfig(
    codebook_size=NUM_CODES,
    mels=MELS,
    speaker=SPEAKER,
    encoder=EncoderShape(width=16, heads=2, inner=24, layers=2, epsilon=EPSILON),
    up_layers=UP_LAYERS,
    estimator=EstimatorShape((16,), HEAD_WIDTH, heads=2, blocks=1, mids=1, is_causal=True),
    vocoder=vocoder_shape(channels=16, pitch_channels=8),
    voices=(),
)
MEANFLOW = replace(NARROW, estimator=replace(NARROW.estimator, is_meanflow=True))
WIDE = replace(
    NARROW,
    encoder=EncoderShape(width=512, heads=8, inner=2048, layers=6, epsilon=EPSILON),
    estimator=EstimatorShape((256,), HEAD_WIDTH, heads=8, blocks=4, mids=12, is_causal=True),
    vocoder=vocoder_shape(channels=512, pitch_channels=512),
)
WIDE_MEANFLOW = replace(WIDE, estimator=replace(WIDE.estimator, is_meanflow=True))


def tensors(config: S3GenConfig = NARROW, seed: int = 0) -> dict[str, Tensor]:
    """Return a dict from published name to random tensor, with one tensor for each audio-input part."""
    return dict(_tensors(config, seed))


@lru_cache(1)
def _tensors(config: S3GenConfig, seed: int) -> dict[str, Tensor]:
    codec = S3GenCodec(config)
    rng = np.random.default_rng(seed)
    flow = random_weights(codec.flow, rng)
    vocoder = as_published(random_vocoder(codec.mel2wav, rng), MAGNITUDE, DIRECTION)
    drawn = {f"flow.{name}": tensor for name, tensor in flow.items()}
    drawn |= {f"mel2wav.{name}": tensor for name, tensor in vocoder.items()}
    return drawn | {"tokenizer._mel_filters": torch.ones(2, 3), "speaker_encoder.head.conv1.weight": torch.ones(4)}


def conditions(seed: int, num_tokens: int, is_odd: bool = False) -> dict[str, Any]:
    """Return random values in the form of the authors' `embed_ref`; `is_odd` adds a mel frame."""
    rng = np.random.default_rng(seed)
    frames = FRAMES_PER_TOKEN * num_tokens + is_odd
    return {
        "prompt_token": torch.from_numpy(rng.integers(NUM_CODES, size=(1, num_tokens))),
        "prompt_token_len": torch.tensor([num_tokens]),
        "prompt_feat": torch.from_numpy(rng.standard_normal((1, frames, MELS), dtype=np.float32)),
        "prompt_feat_len": None,
        "embedding": torch.from_numpy(rng.standard_normal((1, SPEAKER), dtype=np.float32)),
    }
