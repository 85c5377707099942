"""`s3gen`: acoustic decoder of Chatterbox (24 kHz, 25 tokens per second), derived from CosyVoice 2.

a voice's tokens, then the reply's ─► flow, given the voice's mel and x-vector ─► mel of the reply ─► HiFT ─► pcm

The estimator attends to all frames of an utterance, so no sample is available before the last token has arrived. The
result equals that of the authors' `S3Token2Wav.inference` except for the noise, which is determined by a frame's
position. Ids that are not codes do not occur. No watermark is added.

The decoder of Chatterbox Turbo and Nano (`s3gen_meanflow.safetensors`) takes two unguided steps. Its authors add three
tokens of silence to each utterance, so samples follow the last token.

`s3gen.safetensors` of https://huggingface.co/ResembleAI/chatterbox has no config. Sizes are therefore inferred from the
shapes of the tensors; other constants are those of `S3Token2Wav` in https://github.com/resemble-ai/chatterbox.

In the flow, each token becomes two frames:

tokens ─► look-ahead ─► conformer ─► ×2 ─► conformer ─► μ [B, M, T]
noise [M, T] ─► 10 (2) Euler steps along estimator(state, μ, speaker, prompt) ─► mel [B, M, T]

Modules and tensors are named as in the published checkpoint (https://github.com/resemble-ai/chatterbox, `models/s3gen`,
MIT, in parts Apache-2.0).
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Whole, Window
from stretto.codecs.cosyvoice.flow import (
    EncoderLayer,
    EncoderShape,
    Estimator,
    EstimatorShape,
    Matching,
    SourceShape,
    TokenInput,
    VocoderShape,
    noise_tables,
    wave_of_distances,
)
from stretto.codecs.cosyvoice.vocoder import Vocoder
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.errors import CheckpointError, InvalidRequest
from stretto.weights.loading import load_strictly, read_tensors

SAMPLE_RATE, FRAMES_PER_TOKEN = 24_000, 2
GUIDANCE = 0.7
MIXER = "time_embed_mixer.weight"  # tensor of the estimator that only a mean flow has
HEAD_WIDTH = 64  # head width of the estimator's attention
EPSILON = 1e-12  # epsilon of the conformer's norms
HARMONICS, AMPLITUDE, SIGMA, THRESHOLD_HZ = 8, 0.1, 0.003, 10
RATES, KERNELS = (8, 5, 3), (16, 11, 7)
RESIDUAL_KERNELS, SOURCE_KERNELS, DILATIONS = (3, 7, 11), (7, 7, 11), (1, 3, 5)
FOURIER, HOP, SLOPE, LIMIT = 16, 4, 0.1, 0.99

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class S3GenConfig:
    """Sizes in a checkpoint. up_layers: conformer layers after the doubling. voices: number of tokens of each voice."""

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
        """Infer the sizes from the tensors' shapes by name; raise CheckpointError if a tensor is missing."""
        codebook_size, _ = shape_of(shapes, "flow.input_embedding.weight", 2)
        mels, speaker = shape_of(shapes, "flow.spk_embed_affine_layer.weight", 2)
        voices = range(count(shapes, "voices"))
        return cls(
            codebook_size=codebook_size,
            mels=mels,
            speaker=speaker,
            encoder=_encoder(shapes),
            up_layers=count(shapes, "flow.encoder.up_encoders"),
            estimator=_estimator(shapes),
            vocoder=vocoder_shape(
                channels=shape_of(shapes, "mel2wav.conv_pre.bias", 1)[0],
                pitch_channels=shape_of(shapes, "mel2wav.f0_predictor.classifier.weight", 2)[1],
            ),
            voices=tuple(shape_of(shapes, f"voices.{voice}.tokens", 1)[0] for voice in voices),
        )


def _encoder(shapes: Shapes) -> EncoderShape:
    first = "flow.encoder.encoders.0"
    heads, _ = shape_of(shapes, f"{first}.self_attn.pos_bias_u", 2)
    inner, width = shape_of(shapes, f"{first}.feed_forward.w_1.weight", 2)
    return EncoderShape(width, heads, inner, count(shapes, "flow.encoder.encoders"), epsilon=EPSILON)


def _estimator(shapes: Shapes) -> EstimatorShape:
    root = "flow.decoder.estimator"
    inner, width = shape_of(shapes, f"{root}.down_blocks.0.1.0.attn1.to_q.weight", 2)
    return EstimatorShape(
        channels=(width,),
        head_width=HEAD_WIDTH,
        heads=inner // HEAD_WIDTH,
        blocks=count(shapes, f"{root}.down_blocks.0.1"),
        mids=count(shapes, f"{root}.mid_blocks"),
        is_causal=True,
        is_meanflow=f"{root}.{MIXER}" in shapes,
    )


def vocoder_shape(channels: int, pitch_channels: int, is_causal: bool = False) -> VocoderShape:
    """Return HiFT's sizes, given the numbers of channels of the vocoder and of its pitch predictor."""
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
        is_causal=is_causal,
    )


def count(names: Iterable[str], prefix: str) -> int:
    """Return the number of numbered modules under `prefix` among tensor names."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({found[1] for name in names if (found := pattern.match(name))})


def shape_of(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """Return the shape of a tensor; raise CheckpointError if it is missing, or has other than `rank` dimensions."""
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        got = "none" if shape is None else list(shape)
        raise CheckpointError(f"{name}: expected a tensor of {rank} dimensions, got {got}")
    return shape


AHEAD = 3  # tokens


class LookAhead(nn.Module):
    """Convolution over a token and those after it, then a causal convolution, with a residual connection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, inner, AHEAD + 1)
        self.conv2 = nn.Conv1d(inner, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [B, T, H]."""
        ahead = F.leaky_relu(self.conv1(F.pad(x.transpose(1, 2), (0, AHEAD))))
        return x + self.conv2(F.pad(ahead, (2, 0))).transpose(1, 2)


class Doubling(nn.Module):
    """Repetition of each token, followed by a causal convolution: [B, T, H] -> [B, 2 T, H]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2 * FRAMES_PER_TOKEN + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [B, T, H] as [B, 2 T, H]."""
        frames = x.transpose(1, 2).repeat_interleave(FRAMES_PER_TOKEN, 2)
        return self.conv(F.pad(frames, (2 * FRAMES_PER_TOKEN, 0))).transpose(1, 2)


class UpsampleConformer(nn.Module):
    """Conformer with full attention that doubles the number of vectors: [B, T, H] -> [B, 2 T, H]."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        shape, width = config.encoder, config.encoder.width
        self.embed = TokenInput(width, width)
        self.pre_lookahead_layer = LookAhead(width, width)
        self.encoders = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.up_layer = Doubling(width)
        self.up_embed = TokenInput(width, width)
        self.up_encoders = nn.ModuleList(EncoderLayer(shape) for _ in range(config.up_layers))
        self.after_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self._through(self.encoders, self.pre_lookahead_layer(self.embed(x)))
        x = self._through(self.up_encoders, self.up_embed(self.up_layer(x)))
        return self.after_norm(x)

    def _through(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        distances = wave_of_distances(x.shape[1], x.shape[2], x.device).to(x.dtype)
        for layer in layers:
            x = layer(x, distances)
        return x


class Flow(nn.Module):
    """Flow-matching decoder: tokens to mel, with tensors named as under `flow.` in the published file."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.codebook_size, config.encoder.width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.encoder = UpsampleConformer(config)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        estimator = Estimator(config.mels, config.estimator)
        self.decoder = Matching(estimator, 4 * config.mels, GUIDANCE, config.estimator.is_meanflow)

    def goal(self, tokens: Tensor) -> Tensor:
        """Return the condition μ [B, M, 2 T] for tokens [B, T]."""
        return self.encoder_proj(self.encoder(self.input_embedding(tokens))).transpose(1, 2)

    def forward(self, tokens: Tensor, noise: Tensor, prompt: Tensor, speaker: Tensor) -> Tensor:
        """Return the mel frames of tokens, [B, M, 2 T].

        Args:
            tokens: Tokens, [B, T].
            noise: Initial value, [M, 2 T].
            prompt: Known mel frames at the beginning, [B, M, n].
            speaker: x-vectors, [B, E].
        """
        goal = self.goal(tokens)
        known = F.pad(prompt, (0, goal.shape[2] - prompt.shape[2]))
        sound = self.spk_embed_affine_layer(F.normalize(speaker, dim=1))[..., None].expand_as(goal)
        return self.decoder(noise.expand_as(goal), goal, sound, known)


LONGEST = 1000  # tokens, 40 s, the limit of the authors' `generate`
SILENCE, NUM_SILENT = 4299, 3  # token of silence, and how many follow an utterance of Turbo and Nano
MOST_HEARD = 250  # tokens of a recorded voice, 10 s
SILENT_S = 0.02  # muted at an utterance's start, followed by a fade-in of the same length


class Voice(nn.Module):
    """Voice of the flow: tokens [n] and mel [M, 2 n] of a recording, and its x-vector [E]."""

    tokens: Tensor
    mel: Tensor
    speaker: Tensor

    def __init__(self, num_tokens: int, num_mels: int, speaker: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(num_tokens, dtype=torch.int64))
        self.register_buffer("mel", torch.zeros(num_mels, FRAMES_PER_TOKEN * num_tokens))
        self.register_buffer("speaker", torch.zeros(speaker))


@dataclass(slots=True)
class VoiceTable:
    """Voices of recordings by number.

    Attributes:
        first: Smallest number.
        num_codes: Number of different codes.
        num_mels: Number of mel bins.
        speaker: Width of an x-vector.
        most: Maximum number of tokens of a voice.
        step: The number of tokens is a multiple of it.
        voices: The voices.
    """

    first: int
    num_codes: int
    num_mels: int
    speaker: int
    most: int
    step: int = 1
    voices: dict[int, Voice] = field(default_factory=dict)

    def add(self, tokens: np.ndarray, mel: np.ndarray, x_vector: np.ndarray, device: torch.device) -> int:
        """Add the voice of a recording, and return its number.

        Args:
            tokens: Tokens of the recording, int32 [n].
            mel: Its mel spectrogram, float32 [2 n, M].
            x_vector: x-vector of the speaker, float32 [E].
            device: Device of the codec.

        Raises:
            InvalidRequest: If sizes or values do not match the codec.
        """
        size, within = len(tokens), range(self.step, self.most + 1, self.step)
        if size not in within:
            sizes = f"1 to {self.most}" if self.step == 1 else f"{self.step}, {2 * self.step}, … {within[-1]}"
            raise InvalidRequest("chunk.sound.tokens", f"{sizes} codes", f"{size} codes")
        if not 0 <= tokens.min() <= tokens.max() < self.num_codes:
            got = f"[{tokens.min()}, {tokens.max()}]"
            raise InvalidRequest("chunk.sound.tokens", f"codes in [0, {self.num_codes})", got)
        for name, values, shape in (
            ("mel", mel, (FRAMES_PER_TOKEN * size, self.num_mels)),
            ("x_vector", x_vector, (self.speaker,)),
        ):
            if values.shape != shape:
                raise InvalidRequest(f"chunk.sound.{name}", f"shape {list(shape)}", list(values.shape))
            if not np.isfinite(values).all():
                raise InvalidRequest(f"chunk.sound.{name}", "finite numbers", "NaN or infinity")
        voice = Voice(size, self.num_mels, self.speaker)
        voice.tokens.copy_(torch.from_numpy(tokens.astype(np.int64)))
        voice.mel.copy_(torch.from_numpy(mel.T.copy()))
        voice.speaker.copy_(torch.from_numpy(x_vector.copy()))
        number = next(each for each in itertools.count(self.first) if each not in self.voices)
        self.voices[number] = voice.to(device)
        return number


class RecordedVoiceCodec(nn.Module):
    """Base of codecs that only decode, in voices of recordings among others.

    Attributes:
        spec: Constants of the codec.
        noise: Noise of the flow, on the codec's device.
    """

    spec: CodecSpec
    noise: Tensor
    _recorded: VoiceTable

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest, because this codec only decodes."""
        raise InvalidRequest("audio", f"no audio ({self.spec.name} can only decode)", "audio")

    def add_voice(self, tokens: np.ndarray, mel: np.ndarray, x_vector: np.ndarray) -> int:
        """Add the voice of a recording, and return its number; arguments and errors are those of `VoiceTable.add`."""
        return self._recorded.add(tokens, mel, x_vector, self.noise.device)

    def remove_voice(self, number: int) -> None:
        """Remove a voice that was added."""
        del self._recorded.voices[number]


class S3GenCodec(RecordedVoiceCodec):
    """S3Gen, a codec that decodes whole utterances, one at a time.

    The state of an utterance is the number of its voice. Numbers below `num_voices` are those of the checkpoint's
    voices; others are given to recordings by `add_voice`. Tensors are named as published; those of the voices are
    added.
    """

    source_noise: Tensor
    phases: Tensor
    fade: Tensor

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        self.config, shape = config, config.vocoder
        self.num_silent = NUM_SILENT if config.estimator.is_meanflow else 0
        if not config.codebook_size > SILENCE and self.num_silent:
            raise CheckpointError(f"flow.input_embedding.weight: expected more than {SILENCE} codes")
        self.flow, self.mel2wav = Flow(config), Vocoder(config.mels, shape)
        self.voices = nn.ModuleList(Voice(size, config.mels, config.speaker) for size in config.voices)
        self._recorded = VoiceTable(
            len(config.voices), config.codebook_size, config.mels, config.speaker, most=MOST_HEARD
        )
        self.spec = CodecSpec(
            name="s3gen",
            sample_rate=shape.sample_rate,
            samples_per_frame=FRAMES_PER_TOKEN * shape.samples_per_mel,
            num_codebooks=1,
            codebook_size=config.codebook_size,
            streaming=Whole(LONGEST),
            tail_samples=-self.num_silent * FRAMES_PER_TOKEN * shape.samples_per_mel,
            num_voices=len(config.voices),
        )
        spoken = FRAMES_PER_TOKEN * (LONGEST + self.num_silent)
        heard = spoken + FRAMES_PER_TOKEN * max((MOST_HEARD, *config.voices))
        tables = noise_tables(config.mels, shape, heard, spoken)
        silent = round(SILENT_S * shape.sample_rate)
        rising = (torch.linspace(math.pi, 0, silent).cos() + 1) / 2
        tables["fade"] = torch.cat([rising.new_zeros(silent), rising])
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def initial_state(self, batch: int) -> Tensor:
        """Return the index of the first voice, [B, 1], on the host, where it selects the voice's module."""
        return torch.zeros(batch, 1)

    def _voice(self, number: int) -> nn.Module:
        return self.voices[number] if number < len(self.voices) else self._recorded.voices[number]

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return the samples [B, n] of whole utterances, and the unchanged state."""
        voices, codes = window.state[:, 0].int().tolist(), window.codes[:, 0].to(self.noise.device)
        spoken = [self.speak(row, self._voice(voice)) for row, voice in zip(codes, voices, strict=True)]
        return torch.stack(spoken), window.state

    def speak(self, codes: Tensor, voice: nn.Module) -> Tensor:
        """Return the samples [n] of the tokens [T] of a whole utterance, and of the silence that follows them."""
        assert isinstance(voice, Voice)
        codes = torch.cat([codes, codes.new_full((self.num_silent,), SILENCE)])
        mel = self.mel(codes, voice)
        pcm = self.mel2wav(mel, self.source(mel))[0]
        return torch.cat([pcm[: len(self.fade)] * self.fade.to(pcm.dtype), pcm[len(self.fade) :]])

    def mel(self, codes: Tensor, voice: Voice) -> Tensor:
        """Return the mel spectrogram [1, M, 2 T] of tokens [T]."""
        tokens = torch.cat([voice.tokens, codes])
        noise = self.noise[:, : FRAMES_PER_TOKEN * len(tokens)].to(voice.mel.dtype)
        return self.flow(tokens[None], noise, voice.mel[None], voice.speaker[None])[..., voice.mel.shape[1] :]

    def source(self, mel: Tensor) -> Tensor:
        """Return the excitation [1, 1, n] for a mel spectrogram [1, M, T]."""
        length = mel.shape[2] * self.config.vocoder.samples_per_mel
        return self.mel2wav.source(mel, self.phases.to(mel.dtype), self.source_noise[:, :length].to(mel.dtype))


def load(directory: Path, device: str = "cpu") -> S3GenCodec:
    """Load the codec from a converted `codec/` folder.

    Raise CheckpointError if files or tensors are missing or do not match.
    """
    path = directory / "codec" / "model.safetensors"
    tensors = multiply_weight_norm_out(read_tensors(path))
    codec = S3GenCodec(S3GenConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}))
    load_strictly(codec, tensors, path)
    if not codec.config.voices:
        raise CheckpointError(f"{path}: expected at least one voice, got none")
    return codec.eval().requires_grad_(False).to(device)
