"""A codec's samples in the form that a client asked for, chunk by chunk. It holds no more than the resampler's tail."""

import numpy as np
import soxr

from stretto.codec.base import CodecSpec
from stretto.records.delivery import OutputForm

FULL_SCALE = 32_767


class Renderer:
    """Resamples one utterance; the parts put together are exactly one resampling of the whole."""

    def __init__(self, form: OutputForm, spec: CodecSpec) -> None:
        self.form = form
        self.sample_rate = form.sample_rate or spec.sample_rate
        self._stream: soxr.ResampleStream | None = None
        if self.sample_rate != spec.sample_rate:
            self._stream = soxr.ResampleStream(spec.sample_rate, self.sample_rate, 1, dtype="float32")

    def resample(self, pcm: np.ndarray | None, is_final: bool) -> np.ndarray | None:
        """Samples [m] float32 at `sample_rate` for the next [n] of the codec's, or None for none.

        The resampler keeps some tens of milliseconds back; the last call brings them out.
        """
        if self._stream is None:
            return pcm
        if pcm is None and not is_final:
            return None
        samples = self._stream.resample_chunk(np.zeros(0, np.float32) if pcm is None else pcm, last=is_final)
        return np.clip(samples, -1.0, 1.0) if len(samples) else None  # a resampler overshoots

    def encode(self, pcm: np.ndarray | None) -> np.ndarray | None:
        """The samples as they are sent: [m] float32 in [-1, 1], or int16."""
        if pcm is None or self.form.encoding == "pcm_f32le":
            return pcm
        return np.rint(pcm * FULL_SCALE).astype(np.int16)
