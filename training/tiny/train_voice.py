"""Train the codec's decoder of spectra further, with the codes fixed.

    python -m training.tiny.train_voice --shards DIR --teacher DIR --checkpoint DIR --out DIR

The decoder learns from the codes of the training speech to compute the teacher's spectra, as in `train_codec`, but
with distances that weigh frequencies as hearing does, reach further down into quiet sounds, and leave out an
inaudible part: the voiced part of unvoiced hops. Neither the encoder, nor the codebooks, nor the pitch, nor the
language model change. The command writes `codec.safetensors` into `out`; run it again with the same arguments to
continue. `synthesise` may still be writing shards: the command reads them as they appear.
"""

import argparse
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codecs.tiny.codec import (
    BINS,
    FFT_SIZE,
    HOP,
    HOPS,
    SAMPLE_RATE,
    SPECTRUM_AHEAD,
    Decoder,
    Encoder,
    TinyCodec,
    Trunk,
    spectra,
)
from stretto.codecs.tiny.codec import load as load_tiny
from training.tiny.encode import encode
from training.tiny.export_codec import write_weights
from training.tiny.optimiser import clip
from training.tiny.render import bridge, samples_of, sources, speech, teacher_spectra
from training.tiny.spectral_loss import resolution_loss
from training.tiny.synthesise import read_shard
from training.tiny.teacher import Head
from training.tiny.train_codec import EDGE

FRAMES = 80  # per segment
SEGMENTS = 8  # per step, on a CPU
BEGINNINGS = 0.35  # share of the segments that begin with an utterance
QUIETEST = -5.5  # log magnitude below which a spectrum counts as silent
FLOOR = 4e-3  # the same for the magnitude of a band
HEARD_FLOOR = 1e-3  # the same for a band of the audio
MEL_SHARE = 0.8  # of the weights of the bins; the rest is equal for all
# samples of the window of the audio's bands, and between windows
SHORT = 614
SHORT_HOP = 240
SMALLEST = 320  # window of the audio's distance
# the rate holds for SEGMENTS, and grows with the root of their number
PEAK_RATE = 2.5e-4
WARM_UP = 40
# utterances that are encoded before the first step, and at each step
FIRST = 40
MORE = 3
WAIT_S = 0.5  # between looks for shards before the first step
KEPT = 0.98  # of the running mean of the weights
WEIGHTS = {"voiced": 1.0, "free": 1.5, "turn": 0.7, "phase": 0.5, "bands": 1.0, "mel": 2.0, "audio": 1.0}


@cache
def bands(number: int, low_hz: float, high_hz: float, bins: int, device: torch.device | None = None) -> Tensor:
    """Return triangular filters [number, bins] at equal distances on the mel scale. Each sums to 1."""
    low, high = (math.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    edges = 700 * (10 ** torch.linspace(low, high, number + 2, dtype=torch.float64) - 1)
    hz = torch.linspace(0, SAMPLE_RATE / 2, bins, dtype=torch.float64)
    left, centre, right = (edges[place : place + number, None] for place in range(3))
    filters = torch.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)).clamp(min=0)
    return (filters / filters.sum(1, keepdim=True).clamp(min=1e-6)).float().to(device)


@cache
def bin_weights(device: torch.device) -> Tensor:
    """Return the weights [BINS] of the bins, about those of the mel scale. Their mean is 1."""
    weights = 1 / (700 + torch.linspace(0, SAMPLE_RATE / 2, BINS))
    return (MEL_SHARE * weights / weights.mean() + 1 - MEL_SHARE).to(device)


def trunk_values(trunk: Trunk, frames: Tensor) -> Tensor:
    """Return the output of `trunk` at the start of an utterance, [B, T * HOPS, outputs], for frames [B, T, inputs].

    Its convolutions are sums of shifted products, whose gradient is faster on a CPU.
    """
    hidden = trunk.enter(frames).unflatten(-1, (HOPS, trunk.channels)).flatten(1, 2)
    hops = hidden.shape[1]
    blocks: Iterable[Any] = trunk.blocks
    for block in blocks:
        weight = block.mix.weight[:, 0]
        mixed = block.mix.bias
        around = F.pad(hidden, (0, 0, trunk.kernel - 1, 0))
        for place in range(trunk.kernel):
            mixed = mixed + around[:, place : place + hops] * weight[:, place]
        hidden = hidden + block.gain * block.narrow(F.gelu(block.widen(block.norm(mixed))))
    return trunk.leave(trunk.norm(hidden))


class Examples:
    """Growing list of utterances with their codes, and segments of them in a row."""

    def __init__(self, folder: Path, codec: TinyCodec, encoders: list[Encoder], head: Head, seed: int):
        self._folder = folder
        self._codec = codec
        self._encoders = encoders
        self._head = head
        self._rng = np.random.default_rng(seed)
        self._read = set[Path]()
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._known: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # vectors, pitch in Hz, codes

    def __len__(self) -> int:
        return len(self._known)

    def grow(self, number: int) -> None:
        """Encode up to `number` more utterances, each with one of the encoders, while there are shards."""
        for _ in range(number):
            if not self._waiting and (left := sorted({*self._folder.glob("shard_????.npz")} - self._read)):
                path = left[self._rng.integers(len(left))]
                self._read.add(path)
                shard = read_shard(path)
                limits = itertools.pairwise(shard.first)
                self._waiting = [(shard.hidden[a:b], shard.pitch_hz[a:b]) for a, b in limits if b - a >= 3 * HOPS]
            if self._waiting:
                hidden, pitch_hz = self._waiting.pop()
                frames = len(hidden) // HOPS
                hidden = hidden[: frames * HOPS].copy()
                pitch_hz = pitch_hz[: frames * HOPS].astype(np.float32)
                self._known.append((hidden, pitch_hz, self._codes(hidden, pitch_hz, frames)))

    @torch.inference_mode()
    def _codes(self, hidden: np.ndarray, pitch_hz: np.ndarray, frames: int) -> np.ndarray:
        device = self._head.weight.device
        vectors, pitch = (torch.from_numpy(each)[None].to(device) for each in (hidden, pitch_hz))
        pcm = speech(self._head, self._codec.decoder, vectors, pitch)
        self._codec.encoder = self._encoders[self._rng.integers(len(self._encoders))]
        return encode(self._codec, pcm, frames)[0].cpu().numpy()

    def _segment(self) -> tuple[list[np.ndarray], bool]:
        chosen = self._known[self._rng.integers(len(self._known))]
        begins = bool(self._rng.random() < BEGINNINGS)
        first = 0 if begins else int(self._rng.integers(len(chosen[2])))
        parts = [(chosen[0][first * HOPS :], chosen[1][first * HOPS :], chosen[2][first:])]
        while sum(len(part[2]) for part in parts) < FRAMES:
            parts.append(self._known[self._rng.integers(len(self._known))])
        joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return [joined[0][: FRAMES * HOPS], joined[1][: FRAMES * HOPS], joined[2][:FRAMES]], begins or first == 0

    def draw(self, segments: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return segments of FRAMES frames, which are T = FRAMES * HOPS hops.

        They are vectors [B, T, 256], pitch in Hz [B, T], codes [B, K, FRAMES], and whether each begins with its
        utterance [B].
        """
        found, begins = zip(*(self._segment() for _ in range(segments)), strict=True)
        device = self._head.weight.device
        columns = (torch.from_numpy(np.stack(column)).to(device) for column in zip(*found, strict=True))
        hidden, pitch_hz, codes = columns
        return hidden, pitch_hz, codes.long().transpose(1, 2), torch.tensor(begins, device=device)


def heard_bands(pcm: Tensor) -> Tensor:
    """Return the log magnitudes [B, bands, T] of mel bands of samples [B, n]."""
    window = torch.hann_window(SHORT, device=pcm.device)
    found = torch.stft(pcm, SHORT, SHORT_HOP, SHORT, window, center=False, return_complex=True).abs()
    return (bands(64, 60.0, 11_500.0, SHORT // 2 + 1, pcm.device) @ found + HEARD_FLOOR).log()


def spectrum_bands(spectrum: Tensor) -> Tensor:
    """Return the log magnitudes [B, T, bands] of wide and narrow mel bands of spectra [B, T, BINS]."""
    wide = (80, 60.0, 11_500.0)
    narrow = (40, 130.0, 6800.0)
    filters = torch.cat([bands(*each, BINS, spectrum.device) for each in (wide, narrow)])
    magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
    return (magnitude @ filters.T + FLOOR).log()


def distances(
    decoder: Decoder, head: Head, vectors: Tensor, hidden: Tensor, pitch_hz: Tensor, begins: Tensor
) -> dict[str, Tensor]:
    """Return the distances of the decoder's spectra to the teacher's, and of their audio, given the teacher's pitch.

    Args:
        vectors: Quantised vectors, float32 [B, T // HOPS, latent].
        hidden: The teacher's vectors [B, T, 256].
        pitch_hz: Its pitch [B, T]; below 40 in unvoiced hops.
        begins: Whether a segment begins with its utterance, [B]; the others have no loss in their first EDGE hops.
    """
    with torch.no_grad():
        wanted = head(hidden)[:, SPECTRUM_AHEAD:]
        pitch = bridge(pitch_hz)
        found = sources(decoder, pitch, torch.randint(1 << 16, (len(hidden),), device=hidden.device))
        pulses = found.pulses[:, SPECTRUM_AHEAD:]
        noise = found.noise[:, SPECTRUM_AHEAD:]
        target = teacher_spectra(wanted, pulses)
    with torch.autocast(hidden.device.type, torch.bfloat16):
        values = trunk_values(decoder.trunk, vectors)
    values = values.float()[:, :-SPECTRUM_AHEAD]
    heard = torch.ones(values.shape[:2], device=hidden.device)
    heard[~begins, :EDGE] = 0
    near = FFT_SIZE // HOP // 2  # hops on either side that a spectrum reaches
    voicing = F.max_pool1d(pitch.voiced[:, None], 2 * near + 1, 1, near)[:, 0, SPECTRUM_AHEAD:]
    all_hops = heard[..., None]
    voiced_hops = (heard * voicing)[..., None]
    voiced, turn, free, phase, noisy = values.unflatten(-1, (5, BINS)).unbind(-2)
    voiced_t, turn_t, free_t, phase_t = wanted.unbind(-2)

    def mean(distance: Tensor, weight: Tensor) -> Tensor:
        return (distance * weight).sum() / weight.expand_as(distance).sum().clamp(min=1)

    def magnitude(a: Tensor, b: Tensor) -> Tensor:
        return (a.clamp(min=QUIETEST) - b.clamp(min=QUIETEST)).abs() * bin_weights(a.device)

    def audible(level: Tensor) -> Tensor:
        return (level - QUIETEST).clamp(min=0, max=6)

    steady = torch.sigmoid(noisy)
    spectrum = spectra(values, pulses, noise)
    ours, theirs = (samples_of(decoder, each)[:, EDGE * HOP :] for each in (spectrum, target))
    return {
        "voiced": mean(magnitude(voiced, voiced_t), voiced_hops),
        "free": mean(magnitude(free, free_t), all_hops),
        "turn": mean(1 - (math.pi * (turn.tanh() - turn_t.tanh())).cos(), audible(voiced_t) * voiced_hops),
        "phase": mean(1 - 2 * steady * (phase - phase_t).cos() + steady * steady, audible(free_t) * all_hops),
        "bands": mean((spectrum_bands(spectrum) - spectrum_bands(target)).abs(), all_hops),
        "mel": (heard_bands(ours) - heard_bands(theirs)).abs().mean(),
        "audio": resolution_loss(ours, theirs, SMALLEST),
    }


class VoiceTraining:
    """State of a training run, which is saved and resumed together."""

    def __init__(self, codec: TinyCodec, head: Head, out: Path, seconds: float, segments: int = SEGMENTS):
        self.codec = codec
        self._head = head
        self._seconds = seconds
        self._segments = segments
        self._path = out / "voice.pt"
        self._weights: list[Tensor] = list(codec.decoder.trunk.requires_grad_(True).parameters())
        self._optimiser = torch.optim.AdamW(self._weights, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        self._mean = [weight.detach().clone() for weight in self._weights]
        self.step = 0
        self.spent_s = 0.0
        if self._path.exists():
            self._resume()

    def one_step(self, hidden: Tensor, pitch_hz: Tensor, codes: Tensor, begins: Tensor) -> dict[str, Tensor]:
        """Make one update with a result of `Examples.draw`; return the distances before it."""
        peak = PEAK_RATE * math.sqrt(self._segments / SEGMENTS)
        rate = peak * 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent_s / self._seconds)))
        for group in self._optimiser.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / WARM_UP)
        vectors = self.codec.quantiser.decode(codes).float()
        found = distances(self.codec.decoder, self._head, vectors, hidden, pitch_hz, begins)
        self._optimiser.zero_grad(set_to_none=True)
        torch.stack([WEIGHTS[name] * distance for name, distance in found.items()]).sum().backward()
        clip(self._weights)
        self._optimiser.step()
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self._mean, self._weights, 1 - min(KEPT, self.step / (self.step + 10)))
        return {name: distance.detach() for name, distance in found.items()}

    def averaged(self) -> dict[str, Tensor]:
        """Return the codec's weights, with running means for those of the trunk."""
        names = [f"decoder.trunk.{name}" for name, _ in self.codec.decoder.trunk.named_parameters()]
        return self.codec.state_dict() | dict(zip(names, self._mean, strict=True))

    def save(self) -> None:
        state = {
            "weights": [weight.detach() for weight in self._weights],
            "mean": self._mean,
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "spent_s": self.spent_s,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._path)

    @torch.no_grad()
    def _resume(self) -> None:
        state = torch.load(self._path)
        for kind, weights in (("weights", self._weights), ("mean", self._mean)):
            for weight, saved in zip(weights, state[kind], strict=True):
                weight.copy_(saved)
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self.spent_s = state["spent_s"]

    def run(self, examples: Examples) -> None:
        """Train until the time is used up; log and save every 100 steps."""
        totals: dict[str, Tensor | float] = defaultdict(float)
        examples.grow(FIRST)
        while not len(examples):
            time.sleep(WAIT_S)
            examples.grow(FIRST)
        while self.spent_s < self._seconds:
            start = time.monotonic()
            examples.grow(MORE)
            for name, distance in self.one_step(*examples.draw(self._segments)).items():
                totals[name] += distance / 100
            self.spent_s += time.monotonic() - start
            if self.step % 100 == 0:
                figures = " ".join(f"{name} {total:.4f}" for name, total in totals.items())
                print(f"voice {self.step} s {self.spent_s:.0f} {figures}", flush=True)
                totals.clear()
                self.save()
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder that `synthesise` wrote")
    parser.add_argument("--teacher", type=Path, required=True, help="folder that `cut_teacher` wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, help="exported checkpoint, with its codec")
    parser.add_argument(
        "--encoders", type=Path, nargs="*", default=[], help="more codecs, whose encoders are also used"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=2400)
    parser.add_argument("--segments", type=int, default=SEGMENTS, help="segments per step; 96 on a GPU")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = arguments.device
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    codec = load_tiny(arguments.checkpoint, device)
    reader = load_tiny(arguments.checkpoint, device)
    codec.decoder.pitch_trunk.float()
    encoders = [load_tiny(each, device).encoder for each in (arguments.checkpoint, *arguments.encoders)]
    head = Head(arguments.teacher, device)
    training = VoiceTraining(codec, head, arguments.out, arguments.seconds, arguments.segments)
    training.run(Examples(arguments.shards, reader, encoders, head, seed=training.step))
    write_weights(arguments.out, training.averaged())


if __name__ == "__main__":
    main()
