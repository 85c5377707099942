"""`s3gen`: the Chatterbox acoustic decoder (24 kHz, 25 tokens per second), derived from CosyVoice 2.

a voice's tokens, then the reply's ─► flow, given the voice's mel and x-vector ─► mel of the reply ─► HiFT ─► pcm

The estimator attends to all frames of an utterance, so no sample is available before the last token has arrived. The
result equals that of the authors' `S3Token2Wav.inference`, except that the noise depends on the position of a frame.
All ids must be codes. No watermark is added.

The Chatterbox Turbo and Nano decoder (`s3gen_meanflow.safetensors`) takes two unguided steps. Its authors append
three tokens of silence to each utterance, so its audio continues after the last token. The authors' code for
Multilingual drops the samples of the last token (`leaves_out_last` in the codec's config.json).

If config.json has `blocks`, a list of block sizes in tokens, the codec streams. A block is decoded once its tokens have
arrived, given the voice, up to `history` previous tokens, and the mel generated from them. The mel then differs from
that of a single decode. The vocoder produces the same samples as one pass over the mel of all blocks, because its phase
is carried from block to block.

In the flow, each token becomes two frames:

tokens ─► look-ahead ─► conformer ─► ×2 ─► conformer ─► μ [B, M, T]
noise [M, T] ─► 10 (2) Euler steps along estimator(state, μ, speaker, prompt) ─► mel [B, M, T]

Names of modules and tensors, and constants, are those of `models/s3gen` in https://github.com/resemble-ai/chatterbox
(MIT, in parts Apache-2.0). A release has no config, so sizes are inferred from the shapes of its tensors.
"""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import Blocks, CodecSpec, Whole, Window
from stretto.codecs.cosyvoice.flow import (
    AHEAD,
    GUIDANCE,
    EncoderLayer,
    EncoderShape,
    Estimator,
    EstimatorShape,
    LookAhead,
    Matching,
    TokenInput,
    VocoderShape,
    noise_tables,
    wave_of_distances,
)
from stretto.codecs.cosyvoice.shapes import HEAD_WIDTH, Shapes, count, shape_of, vocoder_shape
from stretto.codecs.cosyvoice.vocoder import MEL_KERNEL, PITCH_KERNEL, PITCH_LAYERS, Vocoder
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN, FlowVoice, RecordedVoiceCodec, VoiceTable
from stretto.codecs.streaming import prepare_products
from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import json_object
from stretto.weights.loading import load_strictly, read_tensors

MIXER = "time_embed_mixer.weight"  # tensor that exists only in the estimator of a mean flow
EPSILON = 1e-12  # epsilon of the conformer norms

# far above the published sizes of 6561 codes and 80 mels
MAX_MELS = 512


@dataclass(frozen=True, slots=True)
class S3GenConfig:
    """Sizes of a checkpoint's networks. `up_layers` conformer layers follow the doubling of vectors."""

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
        """Infer the sizes from the shapes of the tensors."""
        codebook_size, _ = shape_of(shapes, "flow.input_embedding.weight", 2)
        mels, speaker = shape_of(shapes, "flow.spk_embed_affine_layer.weight", 2)
        voices = range(count(shapes, "voices"))
        if mels > MAX_MELS:
            raise CheckpointError(f"flow.spk_embed_affine_layer.weight: expected at most {MAX_MELS} mels, got {mels}")
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
    name = f"{root}.down_blocks.0.1.0.attn1.to_q.weight"
    inner, width = shape_of(shapes, name, 2)
    if inner % HEAD_WIDTH:
        raise CheckpointError(f"{name}: expected a multiple of {HEAD_WIDTH} rows, got {inner}")
    return EstimatorShape(
        channels=(width,),
        head_width=HEAD_WIDTH,
        heads=inner // HEAD_WIDTH,
        blocks=count(shapes, f"{root}.down_blocks.0.1"),
        mids=count(shapes, f"{root}.mid_blocks"),
        is_causal=True,
        is_meanflow=f"{root}.{MIXER}" in shapes,
    )


class Doubling(nn.Module):
    """Repetition of each token, followed by a causal convolution: [B, T, H] -> [B, 2 T, H]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2 * FRAMES_PER_TOKEN + 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).repeat_interleave(FRAMES_PER_TOKEN, 2)
        return self.conv(F.pad(frames, (2 * FRAMES_PER_TOKEN, 0))).transpose(1, 2)


class UpsampleConformer(nn.Module):
    """Conformer with full attention that doubles the number of vectors: [B, T, H] -> [B, 2 T, H]."""

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        shape = config.encoder
        width = config.encoder.width
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
    """Flow-matching decoder: tokens to mel. Tensors are named as those under `flow.` in the published file."""

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
        """Return the mel frames [B, M, n] of tokens [B, T], n <= 2 T.

        Args:
            noise: Initial value, [M, n]. Tokens beyond its frames serve only as look-ahead.
            prompt: Known mel frames at the beginning, [B, M, k].
            speaker: x-vectors, [B, E].
        """
        goal = self.goal(tokens)[..., : noise.shape[1]]
        known_mel = F.pad(prompt, (0, goal.shape[2] - prompt.shape[2]))
        sound = self.spk_embed_affine_layer(F.normalize(speaker, dim=1))[..., None].expand_as(goal)
        return self.decoder(noise.expand_as(goal), goal, sound, known_mel)


LONGEST = 1000  # tokens, 40 s, the limit of the authors' `generate`
HISTORY = 250  # previous tokens that a block depends on, 10 s
MAX_BLOCKS = 16  # maximum number of block sizes in config.json
LEAVES_OUT_LAST = "leaves_out_last"  # key of the codec's config.json
# silence token, and how many of them Turbo and Nano append to an utterance
SILENCE = 4299
NUM_SILENT = 3
MAX_PROMPT_TOKENS = 250  # tokens of a recorded voice, 10 s
SILENT_S = 0.02  # time that is muted at an utterance's start, followed by a fade-in of the same length


def frames_around(shape: VocoderShape) -> int:
    """Return the number of mel frames on either side of a frame that its samples depend on, rounded up to even.

    Frames further away matter only through the phase.
    """

    def reach(residual: tuple[int, tuple[int, ...]]) -> int:
        kernel, dilations = residual
        return sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)

    rates = list(itertools.accumulate(shape.rates, operator.mul))
    # the last convolution and the windows of the Fourier transform
    reach_in_frames = 0.5
    furthest = 0.0
    for rate, kernel, residual in reversed(list(zip(rates, shape.kernels, shape.source_residuals, strict=True))):
        reach_in_frames += max(map(reach, shape.residuals)) / rate
        furthest = max(furthest, PITCH_REACH + reach(residual) / rate + reach_in_frames)  # through the source
        reach_in_frames += kernel / (2 * rate)
    return 2 * math.ceil(max(furthest, MEL_KERNEL // 2 + reach_in_frames) / 2)


PITCH_REACH = PITCH_LAYERS * (PITCH_KERNEL // 2)  # frames on either side that the pitch of a frame depends on


class S3GenCodec(RecordedVoiceCodec):
    """S3Gen codec, which decodes each utterance alone, at once or in blocks.

    The state of an utterance, on the host, begins with the number of its voice. Numbers below `num_voices` select
    voices of the checkpoint; `add_voice` assigns other numbers to recorded voices. If the codec decodes in blocks, the
    phase of the vocoder's fundamental, in cycles, and the last mel frames follow. Tensors have their published names.
    Those of the voices are additional.
    """

    source_noise: Tensor
    phases: Tensor
    fade: Tensor

    def __init__(
        self,
        config: S3GenConfig,
        blocks: tuple[int, ...] = (),
        history: int = HISTORY,
        leaves_out_last: bool = False,
    ) -> None:
        """Create the codec.

        Args:
            blocks: Number of tokens in each block; the last size repeats. Empty to decode whole utterances.
            history: Maximum number of previous tokens that a block depends on.
            leaves_out_last: True if the samples of an utterance's last token are not played.
        """
        super().__init__()
        self.config = config
        shape = config.vocoder
        self.num_silent = NUM_SILENT if config.estimator.is_meanflow else 0
        if not config.codebook_size > SILENCE and self.num_silent:
            raise CheckpointError(f"flow.input_embedding.weight: expected more than {SILENCE} codes")
        self.flow = Flow(config)
        self.mel2wav = Vocoder(config.mels, shape)
        self.voices = nn.ModuleList(FlowVoice(size, config.mels, config.speaker) for size in config.voices)
        self.recorded = VoiceTable(
            len(config.voices), config.codebook_size, config.mels, config.speaker, most=MAX_PROMPT_TOKENS
        )
        self.around = frames_around(shape)
        num_unplayed = 1 if leaves_out_last else -self.num_silent
        right = AHEAD + self.around // FRAMES_PER_TOKEN
        self.spec = CodecSpec(
            name="s3gen",
            sample_rate=shape.sample_rate,
            samples_per_frame=FRAMES_PER_TOKEN * shape.samples_per_mel,
            num_codebooks=1,
            codebook_size=config.codebook_size,
            streaming=Blocks(blocks, right, history) if blocks else Whole(LONGEST),
            tail_samples=num_unplayed * FRAMES_PER_TOKEN * shape.samples_per_mel,
            num_voices=len(config.voices),
            reads_on_host=True,
        )
        self.num_kept = max(FRAMES_PER_TOKEN * history, 2 * self.around + PITCH_REACH) if blocks else 0
        spoken = FRAMES_PER_TOKEN * (LONGEST + self.num_silent)
        flow_frames = spoken + FRAMES_PER_TOKEN * max((MAX_PROMPT_TOKENS, *config.voices))
        tables = noise_tables(config.mels, shape, flow_frames, spoken)
        silent = round(SILENT_S * shape.sample_rate)
        rising = (torch.linspace(math.pi, 0, silent, dtype=torch.float64).cos() + 1) / 2
        tables["fade"] = torch.cat([rising.new_zeros(silent), rising])
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros, [B, D], on the host. The first element selects a voice."""
        if self.spec.blocks:
            return torch.zeros(batch, 2 + self.config.mels * self.num_kept, dtype=torch.float64)
        return torch.zeros(batch, 1)

    def _voice(self, number: int) -> FlowVoice:
        voice = self.voices[number] if number < len(self.voices) else self.recorded.voices[number]
        assert isinstance(voice, FlowVoice)
        return voice

    def report_progress(self, call: Callable[[], None]) -> None:
        self.flow.decoder.on_step = call

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        device = self.noise.device
        numbers = window.state[:, 0].tolist()
        codes, states = (tensor.to(device, non_blocking=True) for tensor in (window.codes[:, 0], window.state[:, 1:]))
        spoken = list[Tensor]()
        after = list[Tensor]()
        for row, first, number, state in zip(codes, window.first.tolist(), numbers, states, strict=True):
            pcm, state = self._spoken(row, first - window.left, window, self._voice(int(number)), state)
            spoken.append(pcm[: self.spec.num_samples(len(row) - window.left - window.right, window.right)])
            after.append(state)
        return torch.stack(spoken), torch.cat([window.state[:, :1], torch.stack(after).to(window.state)], 1)

    def _spoken(
        self, codes: Tensor, begin: int, window: Window, voice: FlowVoice, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the samples and the next state of one utterance in a window.

        Args:
            codes: Tokens of the window, [T].
            begin: Index of the first token of `codes` in the utterance.
            state: State of the utterance without the number of its voice, [D - 1], on the codec's device.
        """
        blocks = self.spec.streaming
        if not isinstance(blocks, Blocks):
            return self.speak(codes, voice), state
        done = window.left + blocks.right if window.left else 0
        phase = state[0]
        parts = list[Tensor]()
        mel = state[1:].to(voice.mel).view(1, self.config.mels, -1)
        mel = mel[..., max(0, self.num_kept - FRAMES_PER_TOKEN * max(0, begin + done - AHEAD)) :]
        while done + blocks.size_after(done) <= len(codes):
            border = done + blocks.size_after(done)
            mel = self._with_new_frames(mel, codes[:border], voice, done, begin, AHEAD)
            end = FRAMES_PER_TOKEN * (begin + border - AHEAD)
            pcm, phase = self._vocode(mel, end, self._num_spoken(begin + done), end - self.around, phase)
            parts.append(pcm)
            done = border
            mel = mel[..., -self.num_kept :]
        if window.right == 0:
            codes = torch.cat([codes, codes.new_full((self.num_silent,), SILENCE)])
            mel = self._with_new_frames(mel, codes, voice, done, begin, 0)
            end = FRAMES_PER_TOKEN * (begin + len(codes))
            parts.append(self._vocode(mel, end, self._num_spoken(begin + done), end, phase)[0])
        kept = F.pad(mel[..., -self.num_kept :], (max(0, self.num_kept - mel.shape[2]), 0))
        return torch.cat(parts), torch.cat([phase.reshape(1), kept.flatten().to(state)])

    def _num_spoken(self, border: int) -> int:
        """Return the number of mel frames that are vocoded once the block that ends at `border` is decoded."""
        return FRAMES_PER_TOKEN * (border - AHEAD) - self.around if border else 0

    def _with_new_frames(
        self, mel: Tensor, codes: Tensor, voice: FlowVoice, done: int, begin: int, ahead: int
    ) -> Tensor:
        """Return an utterance's mel [1, M, n] up to token T - `ahead` of `codes` [T].

        `codes` begins with token `begin` of the utterance, and its last `ahead` tokens serve only as look-ahead. `mel`
        ends before token `done` - AHEAD of `codes`, where `done` is the end of the last decoded block, or 0. The
        beginning of `mel` may be missing.
        """
        blocks = self.spec.streaming
        assert isinstance(blocks, Blocks)
        start = blocks.first_needed(done)
        num_known = FRAMES_PER_TOKEN * max(0, done - AHEAD - start)
        known_mel = mel[..., mel.shape[2] - num_known :]
        return torch.cat([mel, self.mel(codes[start:], voice, known_mel, begin + start, ahead)[..., num_known:]], 2)

    def speak(self, codes: Tensor, voice: nn.Module) -> Tensor:
        """Decode the tokens [T] of a whole utterance, followed by silence, to samples [n]."""
        assert isinstance(voice, FlowVoice)
        mel = self.mel(torch.cat([codes, codes.new_full((self.num_silent,), SILENCE)]), voice)
        return self._vocode(mel, mel.shape[2], 0, mel.shape[2], mel.new_zeros((), dtype=torch.float64))[0]

    def mel(
        self, codes: Tensor, voice: FlowVoice, known_mel: Tensor | None = None, start: int = 0, ahead: int = 0
    ) -> Tensor:
        """Return the mel spectrogram [1, M, 2 (T - ahead)] of tokens [T].

        Args:
            codes: Tokens `start` to `start` + T - 1 of an utterance.
            known_mel: Mel of the first tokens, [1, M, k], or None if unknown.
            ahead: Number of tokens at the end that serve only as look-ahead.
        """
        tokens = torch.cat([voice.tokens, codes])
        prompt_frames = voice.mel.shape[1]
        begin = prompt_frames + FRAMES_PER_TOKEN * start
        places = torch.arange(begin, begin + FRAMES_PER_TOKEN * (len(codes) - ahead), device=self.noise.device)
        noise = torch.cat([self.noise[:, :prompt_frames], self.noise[:, places % self.noise.shape[1]]], 1).to(
            voice.mel.dtype
        )
        prompt = voice.mel[None] if known_mel is None else torch.cat([voice.mel[None], known_mel], 2)
        return self.flow(tokens[None], noise, prompt, voice.speaker[None])[..., prompt_frames:]

    def _vocode(self, mel: Tensor, end: int, first: int, last: int, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples [n] of mel frames [first, last), and the phase for the frames after them.

        Args:
            mel: Last mel frames before frame `end` of an utterance, [1, M, T].
            phase: Phase of the fundamental in cycles before frame max(0, `first` - `around`), float64 [].
        """
        hop = self.config.vocoder.samples_per_mel
        start = end - mel.shape[2]
        begin = max(0, first - self.around)
        pitch_start = max(0, begin - PITCH_REACH)
        pitch = self.mel2wav.f0_predictor(mel[..., pitch_start - start :])[:, begin - pitch_start :]
        source = self.source(pitch, begin, phase)
        pcm = self.mel2wav(mel[..., begin - start :], source)[0, (first - begin) * hop : (last - begin) * hop]
        if first == 0:
            pcm = torch.cat([pcm[: len(self.fade)] * self.fade.to(pcm.dtype), pcm[len(self.fade) :]])
        passed = pitch[0, : max(0, last - self.around) - begin].double().sum()
        return pcm, (phase + passed * hop / self.spec.sample_rate) % 1

    def source(self, pitch: Tensor, begin: int = 0, phase: Tensor | float = 0.0) -> Tensor:
        """Return the vocoder's excitation [1, 1, n] for frames from `begin` on.

        Args:
            pitch: Pitch of each frame in Hz, [1, T].
            phase: Phase of the fundamental before the first of the frames, in cycles.
        """
        hop = self.config.vocoder.samples_per_mel
        sines = self.mel2wav.m_source
        places = torch.arange(begin * hop, (begin + pitch.shape[1]) * hop, device=self.noise.device)
        noise = self.source_noise[:, places % self.source_noise.shape[1]].to(pitch.dtype)
        phases = self.phases + 2 * math.pi * (phase * sines.multiples.double() % 1)
        return sines(pitch.repeat_interleave(hop, 1), phases.to(pitch.dtype), noise)


def load(directory: Path, device: str = "cpu") -> S3GenCodec:
    """Load the codec from a converted `codec/` folder."""
    folder = directory / "codec"
    path = folder / "model.safetensors"
    tensors = multiply_weight_norm_out(read_tensors(path))
    config = S3GenConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    codec = S3GenCodec(config, *read_options(folder / "config.json"))
    load_strictly(codec, tensors, path)
    if not codec.config.voices:
        raise CheckpointError(f"{path}: expected at least one voice, got none")
    return prepare_products(codec.eval().requires_grad_(False).to(device))


def read_options(path: Path) -> tuple[tuple[int, ...], int, bool]:
    """Return `blocks`, `history` and `leaves_out_last` from a codec's config.json, or their defaults."""
    record = json_object(path) if path.exists() else {}
    sizes = record.get("blocks", [])
    history = record.get("history", HISTORY)
    leaves_out_last = record.get(LEAVES_OUT_LAST, False)
    if not isinstance(leaves_out_last, bool):
        raise CheckpointError(f"{path}: {LEAVES_OUT_LAST}: expected true or false, got {shown(leaves_out_last)}")
    if not isinstance(sizes, list) or len(sizes) > MAX_BLOCKS or not all(map(_is_length, sizes)):
        expected = f"at most {MAX_BLOCKS} numbers of tokens in [1, {LONGEST}]"
        raise CheckpointError(f"{path}: blocks: expected {expected}, got {shown(sizes)}")
    if not _is_length(history):
        raise CheckpointError(f"{path}: history: expected a number of tokens in [1, {LONGEST}], got {shown(history)}")
    right = AHEAD + frames_around(vocoder_shape(1, 1)) // FRAMES_PER_TOKEN
    if sizes and (min(sizes) <= right or history <= sum(sizes[:-1])):
        expected = f"blocks of more than {right} tokens, of which all but the last fit into the history of {history}"
        raise CheckpointError(f"{path}: blocks: expected {expected}, got {sizes}")
    return tuple(sizes), history, leaves_out_last


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LONGEST
