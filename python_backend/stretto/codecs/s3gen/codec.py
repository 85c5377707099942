"""`s3gen`: acoustic decoder of Chatterbox (24 kHz, 25 tokens per second), derived from CosyVoice 2.

a voice's tokens, then the reply's ─► flow, given the voice's mel and x-vector ─► mel of the reply ─► HiFT ─► pcm

The estimator attends to all frames of an utterance, so no sample exists before the last token has arrived. It computes
what the authors' `S3Token2Wav.inference` computes, except for the noise, which is fixed by a frame's position. Ids that
are no codes do not occur. There is no watermark.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Whole, Window
from stretto.codecs.cosyvoice.flow import noise_tables
from stretto.codecs.cosyvoice.vocoder import Vocoder
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.s3gen.config import FRAMES_PER_TOKEN, S3GenConfig
from stretto.codecs.s3gen.flow import Flow
from stretto.errors import CheckpointError, InvalidRequest
from stretto.weights.loading import load_strictly, read_tensors

LONGEST = 1000  # tokens, 40 s, the limit of the authors' `generate`
SILENT_S = 0.02  # muted at an utterance's start, followed by a fade-in of the same length


class Voice(nn.Module):
    """Voice for the flow: tokens [n] of a recording, its mel [M, 2 n], and an x-vector [E]."""

    tokens: Tensor
    mel: Tensor
    speaker: Tensor

    def __init__(self, config: S3GenConfig, num_tokens: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(num_tokens, dtype=torch.int64))
        self.register_buffer("mel", torch.zeros(config.mels, FRAMES_PER_TOKEN * num_tokens))
        self.register_buffer("speaker", torch.zeros(config.speaker))


class S3GenCodec(nn.Module):
    """S3Gen, a codec of whole utterances, each decoded alone; the state of an utterance is the number of its voice.

    Tensors are named as published, with those of the voices added.
    """

    noise: Tensor
    source_noise: Tensor
    phases: Tensor
    fade: Tensor

    def __init__(self, config: S3GenConfig) -> None:
        super().__init__()
        self.config, shape = config, config.vocoder
        self.flow, self.mel2wav = Flow(config), Vocoder(config.mels, shape)
        self.voices = nn.ModuleList(Voice(config, num_tokens) for num_tokens in config.voices)
        self.spec = CodecSpec(
            name="s3gen",
            sample_rate=shape.sample_rate,
            samples_per_frame=FRAMES_PER_TOKEN * shape.samples_per_mel,
            num_codebooks=1,
            codebook_size=config.codebook_size,
            streaming=Whole(LONGEST),
            num_voices=len(config.voices),
        )
        spoken = FRAMES_PER_TOKEN * LONGEST
        heard = spoken + FRAMES_PER_TOKEN * max(config.voices, default=0)
        tables = noise_tables(config.mels, shape, heard, spoken)
        silent = round(SILENT_S * shape.sample_rate)
        rising = (torch.linspace(math.pi, 0, silent).cos() + 1) / 2
        tables["fade"] = torch.cat([rising.new_zeros(silent), rising])
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Raise InvalidRequest: this codec only decodes."""
        raise InvalidRequest("audio", f"none, as {self.spec.name} only decodes", "audio")

    def initial_state(self, batch: int) -> Tensor:
        """Return [B, 1] with the first voice, on the host, which selects the voice."""
        return torch.zeros(batch, 1)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return the samples [B, n] of whole utterances, and the state unchanged."""
        voices, codes = window.state[:, 0].int().tolist(), window.codes[:, 0].to(self.noise.device)
        spoken = [self.speak(row, self.voices[voice]) for row, voice in zip(codes, voices, strict=True)]
        return torch.stack(spoken), window.state

    def speak(self, codes: Tensor, voice: nn.Module) -> Tensor:
        """Return the samples [n] of the tokens [T] of a whole utterance."""
        assert isinstance(voice, Voice)
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
    """Return the codec in a converted `codec/` folder; raise CheckpointError for mismatched files."""
    path = directory / "codec" / "model.safetensors"
    tensors = multiply_weight_norm_out(read_tensors(path))
    codec = S3GenCodec(S3GenConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}))
    load_strictly(codec, tensors, path)
    if not codec.config.voices:
        raise CheckpointError(f"{path}: expected a voice, got none")
    return codec.eval().requires_grad_(False).to(device)
