"""Padded batches of examples, and their losses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.families.tiny import family as tiny
from training.tiny.network import GUIDED, Network
from training.tiny.sequences import NO_TARGET, Head, Rows

# weights of stream 0 and the codebooks: fine codebooks are largely noise, coarse ones carry the words
STREAM_WEIGHTS = torch.tensor([1.0, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4])
GUIDE_HEADS = [Head(index) for index in range(4)]  # in the order of layers and heads in GUIDED


@dataclass(frozen=True)
class Batch:
    """Padded examples.

    Attributes:
        ids: Rows, int64 [B, T, 9].
        target: Stream 0 of the next row, or NO_TARGET, int64 [B, T].
        codes: Codes of the next row, or NO_TARGET, int64 [B, T, 7].
        look: Spans of rows that the guided attention heads should attend to, int64 [B, T, 4, 2], as in `Rows`.
    """

    ids: Tensor
    target: Tensor
    codes: Tensor
    look: Tensor


@dataclass(frozen=True)
class Losses:
    """Losses of a batch.

    Attributes:
        total: Weighted sum that is minimised in training.
        sums: Sum of losses and number of targets for each kind: text, frame, code0 … code6, look0 … look3.
    """

    total: Tensor
    sums: dict[str, tuple[float, int]]


def collate(examples: Sequence[Rows]) -> Batch:
    """Pad examples to the longest length, rounded up to a multiple of eight rows."""
    length = -(-max(len(rows.ids) for rows in examples) // 8) * 8
    count = len(examples)
    ids = np.full((count, length, tiny.LAYOUT.num_input_streams), tiny.PAD, dtype=np.int64)
    target = np.full((count, length), NO_TARGET, dtype=np.int64)
    codes = np.full((count, length, tiny.NUM_CODEBOOKS), NO_TARGET, dtype=np.int64)
    look = np.zeros((count, length, 4, 2), dtype=np.int64)
    firsts = tiny.FIRST_CODE + tiny.CODEBOOK_SIZE * np.arange(tiny.NUM_CODEBOOKS)
    for index, rows in enumerate(examples):
        size = len(rows.ids)
        ids[index, :size] = rows.ids
        target[index, :size] = rows.target
        look[index, :size] = rows.look
        following = rows.ids[1:, 1 : 1 + tiny.NUM_CODEBOOKS]
        wanted = rows.speaks[:-1, None] & (following != tiny.PAD)
        codes[index, : size - 1] = np.where(wanted, following - firsts, NO_TARGET)
    return Batch(*(torch.from_numpy(array) for array in (ids, target, codes, look)))


def losses(network: Network, batch: Batch, guide: float, text_weight: float) -> Losses:
    """Return the losses of a batch. The total is audio + text_weight · text + guide · guided attention."""
    scores: list[Tensor] = []
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network(batch.ids, scores if guide else None)
        has_text = batch.target != NO_TARGET
        speaks = (batch.codes != NO_TARGET).any(-1)
        text_logits = network.text_logits(hidden[has_text]).float()
        code_logits = network.code_logits(hidden[speaks]).float()
    sums: dict[str, tuple[float, int]] = {}
    text, frame, weight = _text_losses(text_logits, batch.target[has_text], sums)
    audio, audio_weight = _code_losses(code_logits, batch.codes[speaks], sums)
    total = text * text_weight + (audio + frame) / max(1.0, audio_weight + weight)
    if guide:
        total = total + guide * _look_losses(scores, batch.look, sums)
    return Losses(total, sums)


def _text_losses(logits: Tensor, target: Tensor, sums: dict[str, tuple[float, int]]) -> tuple[Tensor, Tensor, float]:
    """Return the loss of stream 0: the mean over text segments, the sum over audio rows, and their number."""
    each = F.cross_entropy(logits, target, reduction="none")
    in_audio = (target >= tiny.FIRST_FRAME_TOKEN) | (target == tiny.END_OF_AUDIO)
    frames, words = each[in_audio], each[~in_audio]
    sums["frame"] = float(frames.detach().sum()), frames.numel()
    sums["text"] = float(words.detach().sum()), words.numel()
    return words.sum() / max(1, words.numel()), frames.sum(), float(frames.numel())


def _code_losses(logits: Tensor, codes: Tensor, sums: dict[str, tuple[float, int]]) -> tuple[Tensor, float]:
    total, weight = logits.new_zeros(()), 0.0
    for k in range(tiny.NUM_CODEBOOKS):
        wanted = codes[:, k] != NO_TARGET
        loss = F.cross_entropy(logits[wanted, k], codes[wanted, k], reduction="sum") if wanted.any() else total * 0
        sums[f"code{k}"] = float(loss.detach()), int(wanted.sum())
        total = total + STREAM_WEIGHTS[k + 1] * loss
        weight += float(STREAM_WEIGHTS[k + 1]) * int(wanted.sum())
    return total, weight


def _look_losses(scores: list[Tensor], look: Tensor, sums: dict[str, tuple[float, int]]) -> Tensor:
    """Return the negative log attention of the guided heads to their spans, averaged over rows, then heads."""
    assert len(scores) == len(GUIDED)
    column = torch.arange(look.shape[1])
    found = []
    for head, score in zip(GUIDE_HEADS, torch.cat(scores, 1).unbind(1), strict=True):
        first, last = look[:, :, head].unbind(-1)
        wanted = last > first
        if not wanted.any():
            continue
        row = wanted.nonzero()[:, 1:]
        scored = score[wanted].masked_fill(column > row, -torch.inf)
        outside = (column < first[wanted][:, None]) | (column >= last[wanted][:, None])
        loss = (scored.logsumexp(-1) - scored.masked_fill(outside, -torch.inf).logsumexp(-1)).mean()
        sums[f"look{int(head)}"] = float(loss.detach()) * len(row), len(row)
        found.append(loss)
    return torch.stack(found).mean() if found else look.new_zeros((), dtype=torch.float32)
