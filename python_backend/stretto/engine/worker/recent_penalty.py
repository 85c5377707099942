"""Repetition penalty on the ids that each output stream has in the last rows of a reply's audio."""

from collections.abc import Sequence

import torch

from stretto.sampling import penalize

EVERY_STREAM = slice(None)


class RecentPenalty:
    """Penalty on the ids of recent rows (`DrawRules.num_recent_rows`), for numpy and torch arrays.

    Args:
        codebooks: Ids of each output stream that are counted. They are the first columns of its logits.
        device: torch device.
    """

    def __init__(self, codebooks: Sequence[range], device: torch.device):
        self._starts = torch.tensor([ids.start for ids in codebooks], device=device)
        self._sizes = torch.tensor([len(ids) for ids in codebooks], device=device)

    def __call__(
        self,
        logits: torch.Tensor,
        history: torch.Tensor,
        counts: torch.Tensor,
        penalty: torch.Tensor,
        streams: slice = EVERY_STREAM,
    ) -> torch.Tensor:
        """Return logits of some streams with the penalty applied, float32 [A, k, C].

        Args:
            logits: Logits, float32 [A, k, C].
            history: Ids of the previous rows, [A, W, k].
            counts: True for previous rows that are counted, bool [A, W].
            penalty: Penalty of each row, float32 [A].
            streams: Slice of k output streams.
        """
        num_rows, num_streams, num_columns = logits.shape
        columns = history - self._starts[streams]
        is_code = counts[..., None] & (columns >= 0) & (columns < self._sizes[streams])
        columns = torch.where(is_code, columns, num_columns)  # the last column of the table is for other ids
        is_seen = torch.zeros(num_rows, num_streams, num_columns + 1, dtype=torch.bool, device=logits.device)
        is_seen.scatter_(2, columns.transpose(1, 2).long(), True)
        lines = num_rows * num_streams
        flat = penalize(
            logits.reshape(lines, num_columns),
            is_seen[..., :-1].reshape(lines, num_columns),
            penalty.repeat_interleave(num_streams, output_size=lines),
        )
        return flat.view_as(logits)
