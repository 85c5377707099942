"""Conversion of codec samples to the client's output format, chunk by chunk."""

import numpy as np
import soxr

from stretto.codec.base import CodecSpec
from stretto.records.delivery import OutputForm

FULL_SCALE = 32_767


class Renderer:
    """Streaming resampler of one utterance; the joined parts equal one resampling of the whole."""

    def __init__(self, form: OutputForm, spec: CodecSpec) -> None:
        self.form = form
        self.sample_rate = form.sample_rate or spec.sample_rate
        self._stream: soxr.ResampleStream | None = None
        if self.sample_rate != spec.sample_rate:
            self._stream = soxr.ResampleStream(spec.sample_rate, self.sample_rate, 1, dtype="float32")

    def resample(self, pcm: np.ndarray | None, is_final: bool) -> np.ndarray | None:
        """Return float32 samples [m] at `sample_rate` for codec samples [n], or None for none.

        The resampler holds back some tens of milliseconds, which the final call returns.
        """
        if self._stream is None:
            return pcm
        if pcm is None and not is_final:
            return None
        samples = self._stream.resample_chunk(np.zeros(0, np.float32) if pcm is None else pcm, last=is_final)
        return np.clip(samples, -1.0, 1.0) if len(samples) else None  # resampling overshoots

    def encode(self, pcm: np.ndarray | None) -> np.ndarray | None:
        """Return the samples [m] as sent: float32 in [-1, 1], or int16."""
        if pcm is None or self.form.encoding == "pcm_f32le":
            return pcm
        return np.rint(pcm * FULL_SCALE).astype(np.int16)
