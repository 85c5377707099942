"""Codes of the training speech: the teacher's audio, and the same audio as recordings."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codecs.tiny.codec import HOP, HOPS, MARGIN, SAMPLE_RATE, TinyCodec, log_mel
from stretto.families.tiny.recording import PEAK, PEAK_QUANTILE
from training.tiny.render import UNVOICED_HZ, speech
from training.tiny.synthesise import Shard
from training.tiny.teacher import Head

FRAME = HOPS * HOP
BATCH_HOPS = 24_000  # padded hops per batch
BANDWIDTHS_HZ = (3400.0, 4000.0, 5500.0, 6000.0, 8000.0)
NOISE_DBFS = (-75.0, -32.0)
LEVEL_DB = (-30.0, 9.0)  # of a recording relative to the teacher's speech; the loudest ones are clipped
LEFT_DB = (-3.0, 3.0)  # what remains of it, because the family brings recordings to one level
PITCHES = (-1.1, 0.4)  # binary logarithms of the factors by which the pitch of recordings changes
LOWEST_VOICED_HZ = 52.0


def encode(codec: TinyCodec, pcm: Tensor, frames: int) -> Tensor:
    """Return codes, uint8 [B, frames, K], of samples [B, n], which are surrounded by silence."""
    padded = F.pad(pcm, (MARGIN, frames * FRAME - pcm.shape[1] + MARGIN))
    vectors = codec.encoder(log_mel(padded))
    return codec.quantiser.encode(vectors[:, MARGIN // FRAME :][:, :frames]).to(torch.uint8)


@dataclass(frozen=True)
class Recordings:
    """Placement of utterances in recordings: hops of silence before each [B], and its speed [B]."""

    before: Tensor
    speed: Tensor

    def place(self, pcm: Tensor, samples: int) -> Tensor:
        """Return the samples [B, samples] of recordings of pcm [B, n], resampled linearly."""
        at = (torch.arange(samples, device=pcm.device) - self.before[:, None] * HOP) * self.speed[:, None]
        low = at.floor()
        inside = (low >= 0) & (low < pcm.shape[1] - 1)
        index = low.clamp(0, pcm.shape[1] - 2).long()
        share = (at - low).float()
        value = pcm.gather(1, index) * (1 - share) + pcm.gather(1, index + 1) * share
        return value * inside


def _uniform(count: int, limits: tuple[float, float], device: torch.device) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * torch.rand(count, 1, device=device)


def _happens(count: int, share: float, device: torch.device) -> Tensor:
    return torch.rand(count, 1, device=device) < share


def _band_limited(pcm: Tensor) -> Tensor:
    """Return pcm [B, n] without the frequencies above a random limit, in two of five recordings."""
    spectrum = torch.fft.rfft(pcm)
    hz = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[1], device=pcm.device)
    limits = torch.tensor(BANDWIDTHS_HZ, device=pcm.device)
    limit = limits[torch.randint(len(limits), (len(pcm), 1), device=pcm.device)]
    limit = limit.where(_happens(len(pcm), 0.4, pcm.device), SAMPLE_RATE)
    low = torch.where(_happens(len(pcm), 0.15, pcm.device), 250.0, 0.0)
    return torch.fft.irfft(spectrum * ((hz < limit) & (hz >= low)), n=pcm.shape[1])


def _companded(pcm: Tensor) -> Tensor:
    """Return pcm [B, n] after mu-law coding with 8 bits."""
    coded = (pcm.sign() * (1 + 255 * pcm.abs().clamp(max=1)).log() / math.log(256) * 127).round() / 127
    return coded.sign() * ((256.0 ** coded.abs()) - 1) / 255


def levelled(pcm: Tensor) -> Tensor:
    """Return pcm [B, n] at the level to which the family brings recordings, within LEFT_DB."""
    peak = pcm.abs().topk(max(1, round(pcm.shape[1] * (1 - PEAK_QUANTILE))), 1).values[:, -1:]
    decibels = _uniform(len(pcm), LEFT_DB, pcm.device)
    return pcm * (PEAK / peak.clamp(min=1e-5)) * 10 ** (decibels / 20)


def worn(pcm: Tensor) -> Tensor:
    """Return clean samples [B, n] as recordings at one level: noisy, clipped, band-limited, or mu-law."""
    count = len(pcm)
    device = pcm.device
    pcm = _band_limited(pcm)
    level = 10 ** (_uniform(count, NOISE_DBFS, device) / 20)
    white = torch.randn_like(pcm)
    brown = F.avg_pool1d(white[:, None], 9, 1, 4)[:, 0] * 3
    noise = torch.where(_happens(count, 0.5, device), white, brown)
    pcm = pcm + noise * level * _happens(count, 0.5, device)
    decibels = torch.where(_happens(count, 0.5, device), _uniform(count, LEVEL_DB, device), 0.0)
    pcm = (pcm * 10 ** (decibels / 20)).clamp(-1, 1)
    pcm = torch.where(_happens(count, 0.12, device), _companded(pcm), pcm)
    return levelled(pcm).clamp(-1, 1)


def unspoken(frames: int, count: int, generator: torch.Generator) -> Tensor:
    """Return recordings without speech, [count, frames * FRAME]: silence, noises, tones, hum and clicks."""
    device = generator.device
    samples = frames * FRAME
    time = torch.arange(samples, device=device) / SAMPLE_RATE
    white = torch.randn(count, samples, generator=generator, device=device)
    pitch = 40 * 50 ** torch.rand(count, 1, generator=generator, device=device)
    tone = (2 * math.pi * pitch * time).sin()
    order = torch.arange(1, 6, device=device)[:, None, None]
    hum = ((2 * math.pi * 50 * (1 + 0.2 * (pitch > 300)) * time * order).sin() / order).sum(0)
    clicks = white * (torch.rand(count, samples, generator=generator, device=device) < 2e-4)
    swell = (0.5 - 0.5 * (2 * math.pi * time * (0.3 + pitch / 2000)).cos()) ** 2
    brown = F.avg_pool1d(white[:, None], 25, 1, 12)[:, 0] * 5
    kinds = torch.stack([white * 0, white * 0.1, brown * 0.1, tone * 0.1, hum * 0.05, clicks, brown * swell * 0.1])
    kind = torch.randint(len(kinds), (count,), generator=generator, device=device)
    level = 10 ** ((torch.rand(count, 1, generator=generator, device=device) * 50 - 40) / 20)
    return (kinds[kind, torch.arange(count, device=device)] * level).clamp(-1, 1)


class ShardEncoder:
    """Encoder of shards with a trained codec."""

    def __init__(self, codec: TinyCodec, head: Head, device: str):
        self._codec = codec
        self._head = head
        self._device = device

    def audio(self, shard: Shard, chosen: np.ndarray, other_pitch: bool) -> Tensor:
        """Return padded samples [B, n] of utterances. With `other_pitch`, two of three have another pitch."""
        lengths = shard.first[chosen + 1] - shard.first[chosen]
        hops = int(lengths.max())
        place = np.minimum(shard.first[chosen][:, None] + np.arange(hops), len(shard.hidden) - 1)
        inside = torch.from_numpy(np.arange(hops) < lengths[:, None]).to(self._device)
        hidden = torch.from_numpy(shard.hidden[place]).to(self._device)
        pitch_hz = torch.from_numpy(shard.pitch_hz[place]).to(self._device).float() * inside
        if other_pitch:
            factor = 2.0 ** _uniform(len(chosen), PITCHES, pitch_hz.device)
            factor = factor.where(_happens(len(chosen), 2 / 3, pitch_hz.device), 1.0)
            pitch_hz = (pitch_hz * factor).clamp(min=LOWEST_VOICED_HZ).where(pitch_hz > UNVOICED_HZ, pitch_hz)
        pcm = speech(self._head, self._codec.decoder, hidden, pitch_hz)
        return pcm * inside.repeat_interleave(HOP, 1)

    @torch.inference_mode()
    def codes(self, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of the sequences to be generated, and of those to be transcribed, uint8 [F, K] each."""
        speak = self._encoded(shard, np.arange(len(shard.first) - 1), shard.speak["frames"], None)
        listen = self._encoded(shard, shard.listened, shard.listen["frames"], shard)
        return speak, listen

    def _encoded(self, shard: Shard, utterances: np.ndarray, frames: np.ndarray, heard: Shard | None) -> np.ndarray:
        found: list[np.ndarray] = [np.zeros(0)] * len(utterances)
        order = np.argsort(frames)
        start = 0
        while start < len(order):
            stop = start + max(1, BATCH_HOPS // (HOPS * int(frames[order[-1]]) + 40))
            part = order[start:stop]
            longest = int(frames[part].max())
            pcm = self.audio(shard, utterances[part], heard is not None)
            if heard is not None:
                before, speed = (torch.from_numpy(each[part]).to(self._device) for each in (heard.before, heard.speed))
                pcm = worn(Recordings(before, speed).place(pcm, longest * FRAME))
            codes = encode(self._codec, pcm[:, : longest * FRAME], longest).cpu().numpy()
            for index, each in zip(part, codes, strict=True):
                found[index] = each[: frames[index]]
            start = stop
        return np.concatenate(found)
