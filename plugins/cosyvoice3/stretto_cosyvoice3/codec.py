"""`cosyvoice3`: CosyVoice 3 decoder (24 kHz, 25 tokens per second; arXiv 2505.17589).

a voice's tokens, then the reply's ─► flow, given the voice's mel and x-vector ─► mel ─► causal HiFT ─► pcm

Each token becomes two frames of the mel spectrogram. A frame attends to its own chunk of 25 tokens and to earlier
chunks (`dit.py`), and a token depends on the next three tokens. A block of tokens therefore ends with three tokens that
serve only as look-ahead. For each block, all tokens of the reply are decoded again, because keys and values of all
solver steps would take 3.6 MB per frame. Utterances of up to `HISTORY` tokens have the same samples as in a single
decode with this mask. Later blocks are decoded without the beginning of the utterance.

On a CPU, all chunks of a voice but the last, which depends on the reply, are computed once (`Prefix`). They are kept
for the voices used most recently, up to `VOICES_BYTES`. Frames of a voice that would take more are decoded with the
reply, so samples do not depend on which voices are kept.

With `"whole": true` in `codec/config.json`, an utterance is decoded without the mask once it is complete, as in the
authors' non-streaming mode.

HiFT is causal, except that it reads four frames ahead and that its phase accumulates from the beginning.

Every voice has a multiple of 25 tokens, so that all utterances have blocks of the same sizes. The initial noise of the
flow is the same as in the authors' `CausalConditionalCFM`. The noise of HiFT depends on the position of a sample; the
authors' code generates new noise at each start. Modules and tensors are named as in
https://huggingface.co/FunAudioLLM/Fun-CosyVoice3-0.5B-2512.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import Blocks, CodecSpec, Whole, Window
from stretto.codecs.cosyvoice.flow import AHEAD, GUIDANCE, STEPS, LookAhead, Matching, VocoderShape
from stretto.codecs.cosyvoice.shapes import HEAD_WIDTH, Shapes, count, shape_of, vocoder_shape
from stretto.codecs.cosyvoice.vocoder import MEL_AHEAD, PITCH_KERNEL, PITCH_LAYERS, POST_KERNEL, Vocoder
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN, FlowVoice, RecordedVoiceCodec, VoiceTable
from stretto.codecs.streaming import prepare_products
from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import json_object
from stretto.weights.loading import load_strictly, read_tensors
from stretto_cosyvoice3 import VOICES_BYTES
from stretto_cosyvoice3.dit import NUM_WAVES, Context, Dit, DitShape

NAME = "cosyvoice3"
CHUNK = 25  # tokens that attend to each other
SIZES = (CHUNK + AHEAD, 2 * CHUNK, 4 * CHUNK)  # tokens per block; 25, 50 and 100 in the authors' code
HISTORY = 60 * CHUNK  # tokens, one minute
MAX_VOICE_TOKENS = 30 * CHUNK
NOISE_FRAMES = 15_000  # number of frames in the authors' noise
NOISE_PERIOD = 500  # number of frames after which HiFT's noise repeats
NOISE_SEED = 45
FOURIER_REACH = 1  # number of frames; covers the window of the Fourier transform


@dataclass(frozen=True, slots=True)
class CosyVoice3Config:
    """Sizes of a checkpoint's networks. `inner` is the width of the look-ahead layer."""

    codebook_size: int
    mels: int
    speaker: int
    inner: int
    estimator: DitShape
    vocoder: VocoderShape

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> "CosyVoice3Config":
        """Infer the sizes from the shapes of the tensors."""
        codebook_size, mels = shape_of(shapes, "flow.input_embedding.weight", 2)
        root = "flow.decoder.estimator"
        inner, width = shape_of(shapes, f"{root}.transformer_blocks.0.ff.ff.0.0.weight", 2)
        attended = shape_of(shapes, f"{root}.transformer_blocks.0.attn.to_q.weight", 2)[0]
        layers = count(shapes, f"{root}.transformer_blocks")
        if attended % HEAD_WIDTH:
            expected = f"a multiple of {HEAD_WIDTH} rows"
            raise CheckpointError(f"{root}.transformer_blocks.0.attn.to_q.weight: expected {expected}, got {attended}")
        return cls(
            codebook_size=codebook_size,
            mels=mels,
            speaker=shape_of(shapes, "flow.spk_embed_affine_layer.weight", 2)[1],
            inner=shape_of(shapes, "flow.pre_lookahead_layer.conv1.bias", 1)[0],
            estimator=DitShape(
                width, layers, attended // HEAD_WIDTH, HEAD_WIDTH, inner, chunk=FRAMES_PER_TOKEN * CHUNK
            ),
            vocoder=vocoder_shape(
                channels=shape_of(shapes, "hift.conv_pre.bias", 1)[0],
                pitch_channels=shape_of(shapes, "hift.f0_predictor.classifier.weight", 2)[1],
                is_causal=True,
            ),
        )


@dataclass(frozen=True, slots=True)
class Prefix:
    """Results for the first frames of a voice, to which later frames attend.

    Attributes:
        num_frames: Number of frames, whole chunks of the mask.
        rows: `Context.kept` of each solver step.
    """

    num_frames: int
    rows: list[list[Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for step in self.rows for tensor in step)


class Flow(nn.Module):
    """Flow-matching decoder: tokens to mel, with tensors named as in the published `flow.pt`."""

    def __init__(self, config: CosyVoice3Config) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.codebook_size, config.mels)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.pre_lookahead_layer = LookAhead(config.mels, config.inner)
        self.decoder = Matching(Dit(config.mels, config.estimator), NUM_WAVES, GUIDANCE)

    def forward(
        self,
        tokens: Tensor,
        noise: Tensor,
        prompt: Tensor,
        speaker: Tensor,
        ahead: int = 0,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Return the mel frames [B, M, 2 (T - ahead)] of tokens [B, T], without those of the prefix.

        Args:
            noise: Initial value, [M, 2 (T - ahead)].
            prompt: Known mel frames at the beginning, [B, M, n].
            speaker: x-vectors, [B, E].
            ahead: Number of tokens at the end that serve only as look-ahead; 0 at the end of an utterance.
        """
        inputs = self._inputs(tokens, noise, prompt, speaker, ahead)
        if prefix is None:
            return self.decoder(*inputs)
        contexts = [Context(prefix.num_frames, rows) for rows in prefix.rows]
        return self.decoder(*(tensor[..., prefix.num_frames :] for tensor in inputs), contexts)

    def prefix(self, tokens: Tensor, noise: Tensor, prompt: Tensor, speaker: Tensor, num_frames: int) -> Prefix:
        """Compute the first `num_frames` frames of a voice, whole chunks of the mask, for `forward`.

        Args:
            tokens: [B, T], at least `AHEAD` more than those of the frames.
            noise: Initial value, [M, 2 T].
            prompt: Mel of the voice, [B, M, 2 T].
            speaker: x-vectors, [B, E].
        """
        contexts = [Context(is_kept=True) for _ in self.decoder.strides]
        inputs = self._inputs(tokens, noise, prompt, speaker, 0)
        self.decoder(*(tensor[..., :num_frames] for tensor in inputs), contexts)
        return Prefix(num_frames, [context.kept for context in contexts])

    def _inputs(
        self, tokens: Tensor, noise: Tensor, prompt: Tensor, speaker: Tensor, ahead: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the arguments of the solver for all frames, [B, M, 2 (T - ahead)] each."""
        goal = self.pre_lookahead_layer(self.input_embedding(tokens))[:, : tokens.shape[1] - ahead]
        goal = goal.transpose(1, 2).repeat_interleave(FRAMES_PER_TOKEN, 2)
        known_mel = F.pad(prompt, (0, goal.shape[2] - prompt.shape[2]))
        sound = self.spk_embed_affine_layer(F.normalize(speaker, dim=1))[..., None].expand_as(goal)
        return noise.expand_as(goal), goal, sound, known_mel


def receptive_frames(shape: VocoderShape) -> int:
    """Return how many earlier mel frames the samples of a frame depend on, other than through the phase."""

    def reach(residual: tuple[int, tuple[int, ...]]) -> int:
        kernel, dilations = residual
        return sum((kernel - 1) * (dilation + 1) for dilation in dilations)

    frames = 0.0
    source = 0.0
    rate = 1
    for factor, kernel, residual in zip(shape.rates, shape.kernels, shape.source_residuals, strict=True):
        rate *= factor
        frames += (kernel + max(map(reach, shape.residuals))) / rate
        source = max(source, reach(residual) / rate)
    return int(frames + source + POST_KERNEL / rate) + 2 + FOURIER_REACH


PITCH_CONTEXT = (PITCH_LAYERS - 1) * (PITCH_KERNEL - 1)  # earlier frames that a frame's pitch depends on
MEL_RIGHT = MEL_AHEAD + FOURIER_REACH  # later frames that a frame's samples depend on
RIGHT = AHEAD + -(-MEL_RIGHT // FRAMES_PER_TOKEN)  # tokens


class CosyVoice3Codec(RecordedVoiceCodec):
    """CosyVoice 3 decoder for recorded voices.

    An utterance's state, float64 [2] on the host, is its voice number (0 for none) and the phase of HiFT's fundamental,
    in cycles. The phase is that before the first frame that the next window decodes again.
    """

    source_noise: Tensor

    def __init__(
        self, config: CosyVoice3Config, sizes: tuple[int, ...] = SIZES, history: int = HISTORY, is_whole: bool = False
    ) -> None:
        """Create the codec.

        Args:
            sizes: Numbers of tokens per block. The first size minus `AHEAD`, and all others, are multiples of `CHUNK`.
            history: Maximum number of preceding tokens that a block depends on, a multiple of `CHUNK`.
            is_whole: True to decode complete utterances of at most `history` tokens, without the mask.
        """
        super().__init__()
        if is_whole:
            config = replace(config, estimator=replace(config.estimator, chunk=NOISE_FRAMES))
        self.config = config
        shape = config.vocoder
        self.flow = Flow(config)
        self.hift = Vocoder(config.mels, shape)
        self.receptive_frames = receptive_frames(shape)
        self._prefixes = OrderedDict[int, Prefix]()  # by number of the voice; the least recently used one is the first
        self.recorded = VoiceTable(1, config.codebook_size, config.mels, config.speaker, MAX_VOICE_TOKENS, CHUNK)
        self.spec = CodecSpec(
            name=NAME,
            sample_rate=shape.sample_rate,
            samples_per_frame=FRAMES_PER_TOKEN * shape.samples_per_mel,
            num_codebooks=1,
            codebook_size=config.codebook_size,
            streaming=Whole(history) if is_whole else Blocks(sizes, RIGHT, history, CHUNK),
            reads_on_host=True,
        )
        drawn = torch.randn(1, config.mels, NOISE_FRAMES, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        samples = np.random.default_rng(NOISE_SEED).random(
            (NOISE_PERIOD * shape.samples_per_mel, shape.source.harmonics + 1), np.float32
        )
        self.register_buffer("noise", drawn[0], persistent=False)
        self.register_buffer("source_noise", torch.from_numpy(samples.T.copy()), persistent=False)

    def initial_state(self, batch: int) -> Tensor:
        """Return zeros, float64 [batch, 2], on the host: no voice, and phase 0."""
        return torch.zeros(batch, 2, dtype=torch.float64)

    def report_progress(self, call: Callable[[], None]) -> None:
        self.flow.decoder.on_step = call

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        device = self.noise.device
        numbers, before = window.state.T
        codes = window.codes[:, 0].to(device, non_blocking=True)
        phases = before.to(device, non_blocking=True)
        spoken = list[Tensor]()
        after = list[Tensor]()
        for row, first, number, phase in zip(codes, window.first.tolist(), numbers.tolist(), phases, strict=True):
            voice = self._voice(int(number))
            parts = []
            begin = first - window.left
            prefix = self._prefix(int(number), voice)
            for start, end, stop in self._passes(first, window.left, len(row), window.right):
                mel = self.mel(row[start - begin : end - begin], voice, start, AHEAD if stop < end else 0, prefix)
                since, begins, ends = (FRAMES_PER_TOKEN * at for at in (start, first, stop))
                pcm, phase = self.speak(mel, since, begins, ends, phase)
                parts.append(pcm)
                first = stop
            del prefix  # the voice is not kept, because its memory may be needed for that of the next utterance
            spoken.append(torch.cat(parts))
            after.append(phase)
        return torch.stack(spoken), torch.stack([numbers, torch.stack(after).to(window.state)], 1)

    def _voice(self, number: int) -> FlowVoice:
        """Return the voice with this number. Number 0 is a voice without tokens."""
        if number:
            return self.recorded.voices[number]
        return FlowVoice(0, self.config.mels, self.config.speaker).to(self.noise.device)

    def remove_voice(self, number: int) -> None:
        super().remove_voice(number)
        self._prefixes.pop(number, None)

    def _prefix(self, number: int, voice: FlowVoice) -> Prefix | None:
        """Return frames of a voice that do not depend on the reply; None on a GPU, whose memory is for batches."""
        shape = self.config.estimator
        size = self.noise.element_size()
        # Twice for guided estimates, and twice for keys and values.
        frame_bytes = 2 * STEPS * shape.layers * 2 * shape.heads * shape.head_width * size
        most = min(voice.mel.shape[1] - shape.chunk, VOICES_BYTES // frame_bytes)
        num_frames = most // shape.chunk * shape.chunk
        if self.noise.is_cuda or num_frames <= 0:
            return None
        if number not in self._prefixes:
            while self._num_kept_bytes() + num_frames * frame_bytes > VOICES_BYTES and self._prefixes:
                self._prefixes.popitem(last=False)
            noise = self.noise[:, : voice.mel.shape[1]].to(voice.mel.dtype)
            inputs = voice.tokens[None], noise, voice.mel[None], voice.speaker[None]
            self._prefixes[number] = self.flow.prefix(*inputs, num_frames)
        self._prefixes.move_to_end(number)
        return self._prefixes[number]

    def _num_kept_bytes(self) -> int:
        return sum(prefix.num_bytes for prefix in self._prefixes.values())

    def _passes(self, first: int, left: int, length: int, right: int) -> list[tuple[int, int, int]]:
        """Return the ranges of tokens to decode together in a window of one utterance.

        The window has `length` tokens, the first of which is token `first` - `left`. For an item (start, end, last),
        tokens [start, end) are read, and samples up to token `last` are returned. Blocks whose input starts at the same
        token share an item.
        """
        blocks = self.spec.streaming
        end = first - left + length
        if not isinstance(blocks, Blocks):
            return [(first, end, end)]
        done = first + RIGHT if left else 0
        passes = list[tuple[int, int, int]]()
        while done + blocks.size_after(done) <= end and (right or done + blocks.size_after(done) < end):
            border = done + blocks.size_after(done)
            passes.append((blocks.first_needed(done), border, border - RIGHT))
            done = border
        if not right:
            passes.append((blocks.first_needed(done), end, end))
        return [
            span
            for span, following in zip(passes, [*passes[1:], None], strict=True)
            if not following or following[0] != span[0]
        ]

    def mel(
        self, codes: Tensor, voice: FlowVoice, start: int = 0, ahead: int = 0, prefix: Prefix | None = None
    ) -> Tensor:
        """Return the mel spectrogram [1, M, 2 (T - ahead)] of an utterance's tokens [T].

        Args:
            codes: Tokens `start` to `start` + T - 1; `start` is a multiple of 25.
            ahead: Number of tokens at the end that serve only as look-ahead; 0 at the end of the utterance.
        """
        prompt_frames = voice.mel.shape[1]
        frames = FRAMES_PER_TOKEN * (len(codes) - ahead)
        begin = prompt_frames + FRAMES_PER_TOKEN * start
        places = torch.arange(begin, begin + frames, device=self.noise.device) % NOISE_FRAMES
        noise = torch.cat([self.noise[:, :prompt_frames], self.noise[:, places]], 1).to(voice.mel.dtype)
        tokens = torch.cat([voice.tokens, codes])
        mel = self.flow(tokens[None], noise, voice.mel[None], voice.speaker[None], ahead, prefix)
        return mel[..., mel.shape[2] - frames :]

    def speak(
        self, mel: Tensor, start: int, first: int, last: int, phase: Tensor | float
    ) -> tuple[Tensor, Tensor | float]:
        """Return the samples [n] of mel frames [first, last), and the phase for the next call.

        Args:
            mel: Mel frames of an utterance from frame `start`, [1, M, T].
            phase: Phase in cycles before frame max(`first` - `receptive_frames`, `start`).
        """
        begin = max(start, first - self.receptive_frames)
        hop = self.config.vocoder.samples_per_mel
        pitch_start = max(start, begin - PITCH_CONTEXT)
        pitch = self.hift.f0_predictor(mel[..., pitch_start - start :].double())[:, begin - pitch_start :]
        cycles = self.hift.m_source.cycles(pitch, pitch.new_zeros(1) + phase, hop)
        frames = torch.arange(begin, start + mel.shape[2], device=mel.device) % NOISE_PERIOD
        noise = self.source_noise.unflatten(1, (NOISE_PERIOD, hop))[:, frames].flatten(1).to(mel.dtype)
        source = self.hift.m_source.held(pitch, cycles, hop, noise)
        pcm = self.hift(mel[..., begin - start :], source)[0, (first - begin) * hop : (last - begin) * hop]
        following = max(start, last - self.receptive_frames) - begin
        return pcm, phase if following == 0 else cycles[0, following - 1]


def load(directory: Path, device: str = "cpu") -> CosyVoice3Codec:
    """Load the codec from a converted `codec/` folder."""
    path = directory / "codec" / "model.safetensors"
    tensors = multiply_weight_norm_out(read_tensors(path))
    config = CosyVoice3Config.from_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    codec = CosyVoice3Codec(config, is_whole=is_whole(path.parent / "config.json"))
    load_strictly(codec, tensors, path)
    return prepared(codec, device)


def is_whole(path: Path) -> bool:
    """Return the setting `whole` in a codec's config.json; False if the file or the setting is missing."""
    whole = json_object(path).get("whole", False) if path.exists() else False
    if not isinstance(whole, bool):
        raise CheckpointError(f"{path}: whole: expected true or false, got {shown(whole)}")
    return whole


def prepared(codec: CosyVoice3Codec, device: str = "cpu") -> CosyVoice3Codec:
    """Return the codec in evaluation mode, with pitch in float64, because phases accumulate its errors."""
    codec = prepare_products(codec.eval().requires_grad_(False).to(device))
    codec.hift.f0_predictor.double()
    return codec
