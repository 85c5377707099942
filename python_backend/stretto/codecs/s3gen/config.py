"""Sizes of S3Gen, read from the shapes of its tensors and completed by constants of the authors' code.

`s3gen.safetensors` of https://huggingface.co/ResembleAI/chatterbox has no config; the constants are those of
`S3Token2Wav` in https://github.com/resemble-ai/chatterbox.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stretto.codecs.cosyvoice.flow import EncoderShape, EstimatorShape, SourceShape, VocoderShape
from stretto.errors import CheckpointError

SAMPLE_RATE, FRAMES_PER_TOKEN = 24_000, 2
GUIDANCE = 0.7
HEAD_WIDTH = 64  # head width of the estimator's attention
EPSILON = 1e-12  # epsilon of the conformer's norms
HARMONICS, AMPLITUDE, SIGMA, THRESHOLD_HZ = 8, 0.1, 0.003, 10
RATES, KERNELS = (8, 5, 3), (16, 11, 7)
RESIDUAL_KERNELS, SOURCE_KERNELS, DILATIONS = (3, 7, 11), (7, 7, 11), (1, 3, 5)
FOURIER, HOP, SLOPE, LIMIT = 16, 4, 0.1, 0.99

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class S3GenConfig:
    """Sizes of a checkpoint. up_layers: conformer layers over frames. voices: number of tokens of each voice."""

    codebook_size: int
    mels: int
    speaker: int
    encoder: EncoderShape
    up_layers: int
    estimator: EstimatorShape
    vocoder: VocoderShape
    voices: tuple[int, ...]

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> "S3GenConfig":
        """Return the sizes given the tensors' shapes by name; raise CheckpointError for a missing tensor."""
        codebook_size, _ = _shape(shapes, "flow.input_embedding.weight", 2)
        mels, speaker = _shape(shapes, "flow.spk_embed_affine_layer.weight", 2)
        voices = range(count(shapes, "voices"))
        return cls(
            codebook_size=codebook_size,
            mels=mels,
            speaker=speaker,
            encoder=_encoder(shapes),
            up_layers=count(shapes, "flow.encoder.up_encoders"),
            estimator=_estimator(shapes),
            vocoder=vocoder_shape(
                channels=_shape(shapes, "mel2wav.conv_pre.bias", 1)[0],
                pitch_channels=_shape(shapes, "mel2wav.f0_predictor.classifier.weight", 2)[1],
            ),
            voices=tuple(_shape(shapes, f"voices.{voice}.tokens", 1)[0] for voice in voices),
        )


def _encoder(shapes: Shapes) -> EncoderShape:
    first = "flow.encoder.encoders.0"
    heads, _ = _shape(shapes, f"{first}.self_attn.pos_bias_u", 2)
    inner, width = _shape(shapes, f"{first}.feed_forward.w_1.weight", 2)
    return EncoderShape(width, heads, inner, count(shapes, "flow.encoder.encoders"), epsilon=EPSILON)


def _estimator(shapes: Shapes) -> EstimatorShape:
    root = "flow.decoder.estimator"
    inner, width = _shape(shapes, f"{root}.down_blocks.0.1.0.attn1.to_q.weight", 2)
    return EstimatorShape(
        channels=(width,),
        head_width=HEAD_WIDTH,
        heads=inner // HEAD_WIDTH,
        blocks=count(shapes, f"{root}.down_blocks.0.1"),
        mids=count(shapes, f"{root}.mid_blocks"),
        is_causal=True,
    )


def vocoder_shape(channels: int, pitch_channels: int) -> VocoderShape:
    """Return the sizes of HiFT with these widths."""
    return VocoderShape(
        channels=channels,
        sample_rate=SAMPLE_RATE,
        rates=RATES,
        kernels=KERNELS,
        residuals=tuple((kernel, DILATIONS) for kernel in RESIDUAL_KERNELS),
        source_residuals=tuple((kernel, DILATIONS) for kernel in SOURCE_KERNELS),
        fourier=FOURIER,
        hop=HOP,
        slope=SLOPE,
        limit=LIMIT,
        source=SourceShape(HARMONICS, AMPLITUDE, SIGMA, THRESHOLD_HZ, pitch_channels),
    )


def count(names: Iterable[str], prefix: str) -> int:
    """Return the number of numbered parts under `prefix`."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        got = "none" if shape is None else list(shape)
        raise CheckpointError(f"{name}: expected a tensor of {rank} dimensions, got {got}")
    return shape
