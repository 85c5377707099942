"""Guidance of the logits of audio rows."""

import torch

from stretto.engine.sampling.guidance import guide
from stretto.engine.worker.predictors import StreamHeads
from stretto.family.base import Family


class GuidedHeads:
    """Logits of a batch's audio rows, guided by the logits of their CFG partners."""

    def __init__(self, heads: StreamHeads, family: Family):
        self._heads = heads
        streams = range(1, family.layout.num_output_streams)
        self._guides_first = 0 in family.guided_streams
        self._guided = tuple(stream in family.guided_streams for stream in streams)

    def first(self, hidden: torch.Tensor, num_rows: int, scale: torch.Tensor) -> torch.Tensor:
        """Return the logits of stream 0 in audio, with guidance, [A, C0 + E].

        Args:
            hidden: Hidden states of A rows, followed by P unconditional rows, [A + P, H].
        """
        if not self._guides_first or len(scale) == 0:
            return self._heads.first(hidden[:num_rows])
        return _merge(self._heads.first(hidden), num_rows, scale)

    def codes(self, logits: torch.Tensor, streams: slice, num_rows: int, scale: torch.Tensor) -> torch.Tensor:
        """Return the logits of `streams` (a slice of streams 1 to S - 1), with guidance, [A, k, C].

        Args:
            logits: Logits without offsets of A rows, followed by P unconditional rows, [A + P, k, C].
        """
        logits = self._heads.shifted(logits, streams)
        if len(scale) == 0:
            return logits
        is_guided = self._guided[streams]
        if all(is_guided):
            return _merge(logits, num_rows, scale)
        conditional = logits[:num_rows]
        for stream, guides in enumerate(is_guided):
            if guides:
                conditional[:, stream] = _merge(logits[:, stream], num_rows, scale)
        return conditional


def _merge(logits: torch.Tensor, num_rows: int, scale: torch.Tensor) -> torch.Tensor:
    """Apply guidance to the first P of A rows, using the P unconditional rows after them: [A + P, ...] -> [A, ...]."""
    num_paired = len(scale)
    guided = guide(logits[:num_paired], logits[num_rows:], scale)
    return guided if num_paired == num_rows else torch.cat([guided, logits[num_paired:num_rows]])
