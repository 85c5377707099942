"""Fitting of the codec's residual quantiser: principal components of stacked log-mel frames, then k-means per codebook.

The quantiser has seven codebooks of 256 entries. Each of its frames covers 4 mel frames (40 ms), which gives 25 frames
per second. Fitting takes well under a minute on one core.
"""

from pathlib import Path

import torch
from torch import Tensor

from stretto.codecs.tiny.codec import NUM_MELS, log_mel
from training.tiny.synthesise import Utterance, read_shard

MEL_FRAMES = 4
NUM_CODEBOOKS = 7
CODEBOOK_SIZE = 256
RANK = 96
ITERATIONS = 12
MAX_FRAMES = 60_000
NUM_SHARDS = 10


def stacked_mel(utterance: Utterance) -> Tensor:
    """Return log-mel frames in groups of four, [T, 4 * NUM_MELS]; the last frame is repeated to fill its group."""
    mel = log_mel(utterance.pcm.float() / 32768)
    missing = -len(mel) % MEL_FRAMES
    return torch.cat([mel, mel[-1:].expand(missing, -1)]).reshape(-1, MEL_FRAMES * NUM_MELS)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index [N] of the centre [V, D] nearest to each point [N, D]."""
    parts = points.split(8192)
    return torch.cat([(centres.square().sum(1) - 2 * part @ centres.T).argmin(1) for part in parts])


def k_means(points: Tensor, size: int, iterations: int) -> Tensor:
    """Return k-means centres [size, D]; a centre without points restarts at a random point."""
    centres = points[torch.randperm(len(points))[:size]].clone()
    for _ in range(iterations):
        owner = nearest(points, centres)
        counts = torch.bincount(owner, minlength=size)
        centres = torch.zeros_like(centres).index_add_(0, owner, points) / counts.clamp(min=1)[:, None]
        empty = counts == 0
        centres[empty] = points[torch.randint(len(points), (int(empty.sum()),))]
    return centres


def fit(frames: Tensor) -> dict[str, Tensor | int]:
    """Fit stacked frames [N, 256]; return the mean `mu`, the basis `P` [256, D] and codebooks `cb` [K, V, D]."""
    if len(frames) > MAX_FRAMES:
        frames = frames[torch.randperm(len(frames))[:MAX_FRAMES]]
    mean = frames.mean(0)
    centred = frames - mean
    # not whitened, so that distances between projections equal distances between log-mel frames
    basis = torch.linalg.svd(centred.T @ centred / len(centred)).U[:, :RANK]
    residual = centred @ basis
    codebooks = []
    for _ in range(NUM_CODEBOOKS):
        centres = k_means(residual, CODEBOOK_SIZE, ITERATIONS)
        residual = residual - centres[nearest(residual, centres)]
        codebooks.append(centres)
    tables = torch.stack(codebooks)
    return {"S": MEL_FRAMES, "nq": NUM_CODEBOOKS, "K": CODEBOOK_SIZE, "mu": mean, "P": basis, "cb": tables}


def fit_codec(folder: Path) -> Path:
    """Fit the quantiser to the first shards of `folder` and write `rvq.pt` there, unless it exists."""
    path = folder / "rvq.pt"
    if not path.exists():
        torch.manual_seed(0)
        shards = sorted(folder.glob("shard_*.pt"))[:NUM_SHARDS]
        torch.save(fit(torch.cat([stacked_mel(u) for shard in shards for u in read_shard(shard)])), path)
    return path
