"""Training data of the vocoder: waveforms with their log-mel frames and pitch."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.tiny.codec import HOP, NUM_MELS, SAMPLE_RATE, ResidualVQ, log_mel
from training.tiny.synthesise import Utterance, read_shard

MEL_FRAMES = 4
HOP_MS = 1000 * HOP / SAMPLE_RATE


@dataclass(frozen=True)
class Clip:
    """An utterance, cut to T mel frames so that all codec frames are complete.

    Attributes:
        pcm: Samples, float32 [T * HOP].
        mel: Log-mel frames, float32 [T, NUM_MELS].
        pitch_hz: Pitch in Hz, float32 [T]; 0 for unvoiced frames.
    """

    pcm: Tensor
    mel: Tensor
    pitch_hz: Tensor


def read_pitch(pcm: np.ndarray, frames: int) -> Tensor:
    """Return the pitch in Hz at the middle of each mel frame, 0 if unvoiced (WORLD's DIO and StoneMask)."""
    import pyworld  # only training depends on it

    wave = pcm.astype(np.float64)
    coarse, times = pyworld.dio(wave, SAMPLE_RATE, f0_floor=60, f0_ceil=400, frame_period=HOP_MS / 2)
    fine = pyworld.stonemask(wave, coarse, times, SAMPLE_RATE)[1::2]  # estimates are at multiples of half a hop
    found = np.zeros(frames, dtype=np.float32)
    found[: min(frames, len(fine))] = fine[:frames]
    return torch.from_numpy(found)


def make_clip(utterance: Utterance) -> Clip:
    """Return the clip of an utterance, cut to whole codec frames."""
    frames = len(utterance.pcm) // (HOP * MEL_FRAMES) * MEL_FRAMES
    pcm = utterance.pcm[: frames * HOP].float() / 32768
    return Clip(pcm, log_mel(pcm), read_pitch(pcm.numpy(), frames))


def load_clips(data: Path, cache: Path, num_shards: int) -> list[Clip]:
    """Return the clips of the first shards; each shard's clips are computed once and stored in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    clips: list[Clip] = []
    for shard in sorted(data.glob("shard_*.pt"))[:num_shards]:
        path = cache / f"clips_{shard.stem}.pt"
        if not path.exists():
            made = [make_clip(utterance) for utterance in read_shard(shard)]
            torch.save([(clip.pcm, clip.mel, clip.pitch_hz) for clip in made], path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
            print(f"{path.name}: {sum(len(clip.pcm) for clip in made) / SAMPLE_RATE:.0f} s", flush=True)
        clips += [Clip(*parts) for parts in torch.load(path)]
    return clips


def load_quantiser(path: Path) -> ResidualVQ:
    """Load the residual quantiser that `fit_codec` has fitted."""
    tables = torch.load(path)
    books = tables["cb"]
    quantiser = ResidualVQ(tables["mu"].shape[0], tables["P"].shape[1], books.shape[0], books.shape[1])
    quantiser.load_state_dict({"mean": tables["mu"], "basis": tables["P"], "codebooks": books})
    return quantiser


def quantise(quantiser: ResidualVQ, mel: Tensor, num_codebooks: int) -> Tensor:
    """Quantise mel frames [T, NUM_MELS] with the first codebooks and return the reconstruction."""
    codes = quantiser.encode(mel.reshape(-1, MEL_FRAMES * NUM_MELS)).T[:num_codebooks]
    return quantiser.decode(codes[None])[0].float().reshape(-1, NUM_MELS)


@dataclass(frozen=True)
class Batch:
    """Random segments of clips.

    Attributes:
        pcm: Samples, [B, T * HOP].
        mel: Log-mel frames, [B, T, NUM_MELS].
        pitch_hz: Pitch in Hz, interpolated over unvoiced frames, [B, T].
        voiced: 1 for voiced frames and 0 for others, [B, T].
    """

    pcm: Tensor
    mel: Tensor
    pitch_hz: Tensor
    voiced: Tensor


def bridge(pitch_hz: Tensor) -> Tensor:
    """Return the pitch, linearly interpolated over unvoiced frames."""
    known = torch.nonzero(pitch_hz)[:, 0].numpy()
    if len(known) == 0:
        return torch.full_like(pitch_hz, 130.0)
    return torch.from_numpy(np.interp(np.arange(len(pitch_hz)), known, pitch_hz.numpy()[known])).float()


def draw_batch(clips: list[Clip], mels: list[list[Tensor]], rng: random.Random, size: int, frames: int) -> Batch:
    """Return random segments of whole codec frames.

    Args:
        mels: For each clip, variants of its mel frames; one is chosen at random.
        size: Number of segments.
    """
    parts: list[tuple[Tensor, ...]] = []
    while len(parts) < size:
        index = rng.randrange(len(clips))
        clip = clips[index]
        if len(clip.mel) < frames:
            continue
        start = MEL_FRAMES * rng.randrange((len(clip.mel) - frames) // MEL_FRAMES + 1)
        cut = slice(start, start + frames)
        pcm = clip.pcm[start * HOP : (start + frames) * HOP]
        pitch = clip.pitch_hz[cut]
        parts.append((pcm, rng.choice(mels[index])[cut], bridge(pitch), (pitch > 0).float()))
    return Batch(*(torch.stack(column) for column in zip(*parts, strict=True)))
