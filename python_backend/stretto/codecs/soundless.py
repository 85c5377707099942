"""`soundless`: a codec of silence, for models that generate only text."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Window, Windowed
from stretto.errors import InvalidRequest

INPUT_RATE = 16_000  # sample rate of the audio encoders of models that generate only text


class Soundless(nn.Module):
    """Codec of silence, for models that generate only text but are served like others."""

    spec = CodecSpec("soundless", 24_000, 1920, 1, 1, Windowed(0, 0), input_rate=INPUT_RATE)

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        raise InvalidRequest("audio", "no audio to encode (this checkpoint generates only text)", "audio")

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0)

    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        batch, _, frames = window.codes.shape
        return window.state.new_zeros(batch, frames * self.spec.samples_per_frame), window.state


def load(directory: Path, device: str = "cpu") -> Soundless:
    """Return the codec, which has no files."""
    return Soundless()
