"""Losses of a batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.families.tiny import family as tiny
from training.tiny.corpus import Batch
from training.tiny.network import GUIDED, Network
from training.tiny.sequences import NO_TARGET, Head

# weights of stream 0 and the codebooks: fine codebooks are largely noise, coarse ones carry the words
STREAM_WEIGHTS = torch.tensor([1.0, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4])
GUIDE_HEADS = [Head(index) for index in range(4)]  # in the order of layers and heads in GUIDED


@dataclass(frozen=True)
class Losses:
    """Weighted sum of a batch's losses, and for each kind their sum and the number of targets."""

    total: Tensor
    sums: dict[str, tuple[Tensor, int]]


def losses(network: Network, batch: Batch, guide: float, text_weight: float) -> Losses:
    """Return the losses of a batch. The total is audio + text_weight · text + guide · guided attention."""
    scores: list[Tensor] = []
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        hidden = network(batch.ids, scores if guide else None)
        has_text = batch.target != NO_TARGET
        speaks = (batch.codes != NO_TARGET).any(-1)
        text_logits = network.text_logits(hidden[has_text]).float()
        code_logits = network.code_logits(hidden[speaks]).float()
    sums: dict[str, tuple[Tensor, int]] = {}
    text, frame, weight = _text_losses(text_logits, batch.target[has_text], sums)
    audio, audio_weight = _code_losses(code_logits, batch.codes[speaks], sums)
    total = text * text_weight + (audio + frame) / max(1.0, audio_weight + weight)
    if guide:
        total = total + guide * _look_losses(scores, batch.look, sums)
    return Losses(total, sums)


def _text_losses(logits: Tensor, target: Tensor, sums: dict[str, tuple[Tensor, int]]) -> tuple[Tensor, Tensor, float]:
    """Return the losses of stream 0: the mean over text, the sum over audio rows, and the number of audio rows."""
    each = F.cross_entropy(logits, target, reduction="none")
    in_audio = (target >= tiny.FIRST_FRAME_TOKEN) | (target == tiny.END_OF_AUDIO)
    frames = each[in_audio]
    words = each[~in_audio]
    sums["frame"] = frames.detach().sum(), frames.numel()
    sums["text"] = words.detach().sum(), words.numel()
    return words.sum() / max(1, words.numel()), frames.sum(), float(frames.numel())


def _code_losses(logits: Tensor, codes: Tensor, sums: dict[str, tuple[Tensor, int]]) -> tuple[Tensor, float]:
    """Return the weighted sum of the codebooks' losses, and that of the weights; add losses by kind to `sums`.

    Args:
        logits: Logits of rows with targets, [N, 7, 256].
        codes: Targets, or NO_TARGET, [N, 7].
    """
    each = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none", ignore_index=NO_TARGET)
    by_book = each.unflatten(0, codes.shape).sum(0)
    counts = (codes != NO_TARGET).sum(0).tolist()
    weights = STREAM_WEIGHTS[1:].to(logits.device)
    for k, count in enumerate(counts):
        sums[f"code{k}"] = by_book[k].detach(), count
    return (weights * by_book).sum(), float((STREAM_WEIGHTS[1:] * torch.tensor(counts)).sum())


def _look_losses(scores: list[Tensor], look: Tensor, sums: dict[str, tuple[Tensor, int]]) -> Tensor:
    """Return the negative log attention of the guided heads to their spans, averaged over rows, then heads."""
    assert len(scores) == len(GUIDED)
    column = torch.arange(look.shape[1], device=look.device)
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
        sums[f"look{int(head)}"] = loss.detach() * len(row), len(row)
        found.append(loss)
    return torch.stack(found).mean() if found else look.new_zeros((), dtype=torch.float32)
