"""Codecs without a state: a window and its context decode to samples of which the context's are dropped."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codec.base import CodecSpec, Window
from stretto.errors import InvalidRequest


class WindowedCodec(nn.Module):
    """What convolutional codecs share. A codec adds `forward` and, where its checkpoint can encode, `codes_of`."""

    def __init__(self, spec: CodecSpec, can_encode: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.can_encode = can_encode

    def forward(self, codes: Tensor) -> Tensor:
        """Waveform [B, n] of codes [B, K, T] as of a whole utterance: n is spec.num_samples(T, right=0)."""
        raise NotImplementedError

    def codes_of(self, pcm: Tensor) -> Tensor:
        """Return codes [B, K, T] of pcm [B, n] from `fit`."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    def initial_state(self, batch: int) -> Tensor:
        """Nothing is carried: [batch, 0]."""
        return torch.zeros(batch, 0, device=self.device)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        """As `base.Codec` says."""
        frames = window.codes.shape[2] - window.left - window.right
        start = window.left * self.spec.samples_per_frame
        pcm = self(window.codes.to(self.device))[:, start : start + self.spec.num_samples(frames, window.right)]
        return pcm.clamp(-1, 1), window.state

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording, as described by `base.Codec`; InvalidRequest if the checkpoint has no encoder."""
        if not self.can_encode:
            raise InvalidRequest("audio", f"none, as this checkpoint of {self.spec.name} only decodes", "audio")
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(pcm).to(self.device, next(self.parameters()).dtype)
        return self.codes_of(self.fit(samples)[None])[0, : self.spec.num_codebooks].cpu().numpy()

    def fit(self, samples: Tensor) -> Tensor:
        """Return samples [n] with silence appended to the last frame, as transformers' `DacFeatureExtractor` pads."""
        return F.pad(samples, (0, -len(samples) % self.spec.samples_per_frame))
