"""Train the codec: python -m training.tiny.train_codec --shards DIR --teacher DIR --out DIR

The encoder reads the teacher's audio. The decoder learns the spectra that the teacher computes, given the same pulses
and noise, and their audio. The quantiser's codebooks are running means of the vectors that they encode, and begin as
k-means centres. Run it again with the same arguments to continue from the last checkpoint in DIR.
"""

import argparse
import math
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codecs.tiny.codec import (
    BINS,
    HOPS,
    PITCH_AHEAD,
    SPECTRUM_AHEAD,
    TinyCodec,
    TinyConfig,
    log_mel,
    spectra,
)
from training.tiny.optimiser import clip
from training.tiny.render import Sources, bridge, samples_of, sources, teacher_spectra
from training.tiny.spectral_loss import spectral_loss
from training.tiny.synthesise import read_shard
from training.tiny.teacher import Head

QUIETEST = -4.0  # log magnitude below which a spectrum counts as silent
EDGE = 24  # hops at the start of a segment without a loss, where the networks lack context
LATE_EDGE = 12  # the same at its end


@dataclass(frozen=True)
class CodecTraining:
    """Settings of the codec's training.

    Attributes:
        hops: Hops per segment, a multiple of HOPS.
        unquantised: Number of first steps without the quantiser.
    """

    seconds: float
    segments: int = 48
    hops: int = 168
    peak: float = 1.2e-3
    warm_up: int = 100
    unquantised: int = 200
    codec: TinyConfig = field(default_factory=TinyConfig)


class Speech:
    """Vectors and pitch of the shards in a folder, joined on the device."""

    def __init__(self, folder: Path, device: str):
        self._folder = folder
        self._device = device
        self._seen: set[str] = set()
        self.hidden = torch.zeros(0, 256, dtype=torch.float16, device=device)
        self.pitch_hz = torch.zeros(0, device=device)

    def refresh(self, limit: int) -> None:
        """Read new shards, at most `limit` in all."""
        for path in sorted(self._folder.glob("shard_????.npz")):
            if path.name in self._seen or len(self._seen) >= limit:
                continue
            shard = read_shard(path)
            self._seen.add(path.name)
            self.hidden = torch.cat([self.hidden, torch.from_numpy(shard.hidden).to(self._device)])
            self.pitch_hz = torch.cat([self.pitch_hz, torch.from_numpy(shard.pitch_hz).float().to(self._device)])

    def draw(self, segments: int, hops: int) -> tuple[Tensor, Tensor]:
        """Return random segments: vectors [B, T, 256] and pitch in Hz [B, T]."""
        first = torch.randint(len(self.hidden) - hops, (segments, 1), device=self._device)
        place = first + torch.arange(hops, device=self._device)
        return self.hidden[place], self.pitch_hz[place]


class Codebooks:
    """Codebooks of the quantiser, trained as running means. Unused entries restart at random vectors."""

    def __init__(self, codec: TinyCodec):
        self._books = codec.quantiser.codebooks
        self.counts = torch.ones(self._books.shape[:2], device=self._books.device)
        self.sums = self._books.clone()

    @torch.no_grad()
    def begin(self, vectors: Tensor) -> None:
        """Set the codebooks to k-means centres of vectors [N, D] and their residuals."""
        residual = vectors.float()
        for k, book in enumerate(self._books):
            centres = residual[torch.randperm(len(residual), device=residual.device)[: len(book)]].clone()
            for _ in range(10):
                owner = nearest(residual, centres)
                counts = torch.bincount(owner, minlength=len(centres))
                centres = torch.zeros_like(centres).index_add_(0, owner, residual) / counts.clamp(min=1)[:, None]
                lost = counts == 0
                centres[lost] = residual[torch.randint(len(residual), (int(lost.sum()),), device=residual.device)]
            self._books[k] = centres
            residual = residual - centres[nearest(residual, centres)]
        self.counts.fill_(4.0)
        self.sums.copy_(self._books * 4.0)

    @torch.no_grad()
    def quantise(self, vectors: Tensor, learn: bool = True) -> Tensor:
        """Return the sums of the nearest entries after each codebook, [K, N, D], for vectors [N, D]."""
        residual = vectors.float()
        total = torch.zeros_like(vectors.float())
        sums = []
        for k, book in enumerate(self._books):
            owner = nearest(residual, book)
            if learn:
                self._learn(k, residual, owner)
            chosen = book[owner]
            total = total + chosen
            residual = residual - chosen
            sums.append(total)
        return torch.stack(sums)

    def _learn(self, k: int, residual: Tensor, owner: Tensor) -> None:
        keep = 0.98
        size = len(self._books[k])
        counts = torch.zeros(size, device=residual.device).index_add_(0, owner, torch.ones_like(residual[:, 0]))
        self.counts[k].mul_(keep).add_(counts, alpha=1 - keep)
        self.sums[k].mul_(keep).index_add_(0, owner, residual, alpha=1 - keep)
        lost = self.counts[k] < 0.02 * self.counts[k].mean()
        others = residual[torch.randint(len(residual), (size,), device=residual.device)]
        means = self.sums[k] / self.counts[k].clamp(min=1e-4)[:, None]
        self._books[k] = torch.where(lost[:, None], others, means)
        average = self.counts[k].mean()
        self.sums[k] = torch.where(lost[:, None], others * average, self.sums[k])
        self.counts[k] = torch.where(lost, average, self.counts[k])


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Return the index [N] of the centre [V, D] nearest to each point [N, D]."""
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)


def student_values(codec: TinyCodec, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the head's values [B, T * HOPS, 5 * BINS], and log pitch and voicing logit [B, 2, T * HOPS]."""
    decoder = codec.decoder
    values, _ = decoder.trunk(vectors, vectors.new_zeros(len(vectors), decoder.trunk.state_size))
    curve, _ = decoder.pitch(vectors, vectors.new_zeros(len(vectors), decoder.pitch_trunk.state_size))
    return values.float(), curve.float()


def spectrum_losses(values: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return distances between the student's values [B, T, 5, BINS] and the teacher's [B, T, 4, BINS]."""
    voiced, turn, free, phase, noisy = values.unbind(-2)
    voiced_t, turn_t, free_t, phase_t = wanted.unbind(-2)

    def magnitude(a: Tensor, b: Tensor) -> Tensor:
        return (a.clamp(min=QUIETEST) - b.clamp(min=QUIETEST)).abs().mean()

    def weight(level: Tensor) -> Tensor:
        return (level - QUIETEST).clamp(min=0, max=6)

    turned = math.pi * (torch.tanh(turn) - torch.tanh(turn_t))
    steady = torch.sigmoid(noisy)
    missed = 1 - 2 * steady * (phase - phase_t).cos() + steady * steady
    heard = weight(voiced_t)
    free_heard = weight(free_t)
    return {
        "voiced": magnitude(voiced, voiced_t),
        "free": magnitude(free, free_t),
        "turn": ((1 - turned.cos()) * heard).sum() / heard.sum().clamp(min=1),
        "phase": (missed * free_heard).sum() / free_heard.sum().clamp(min=1),
    }


WEIGHTS = {
    "voiced": 1.0, "free": 1.0, "turn": 0.7, "phase": 0.5, "audio": 2.0, "pitch": 4.0, "voicing": 0.7, "commit": 0.3
}  # fmt: skip


class Training:
    """State of a training run, which is saved and resumed together."""

    def __init__(self, config: CodecTraining, head: Head, out: Path, device: str):
        torch.manual_seed(0)
        self.config = config
        self.device = device
        self.out = out
        self.codec = TinyCodec(config.codec).to(device)
        self.head = head
        with torch.no_grad():  # the last layer starts as the teacher's head
            leave = self.codec.decoder.trunk.leave
            for place, source in enumerate((0, 1, 3, 4)):
                rows = slice(place * BINS, (place + 1) * BINS), slice(source * BINS, (source + 1) * BINS)
                leave.weight[rows[0]] = head.weight[rows[1]]
                leave.bias[rows[0]] = head.bias[rows[1]]
            leave.weight[4 * BINS :] = 0
            leave.bias[4 * BINS :] = 1.0
        self.books = Codebooks(self.codec)
        self.step = 0
        self.spent_s = 0.0
        self._recent: list[Tensor] = []  # vectors of the last steps
        self.mean = {name: weight.detach().clone() for name, weight in self.codec.named_parameters()}
        self.optimiser = torch.optim.AdamW(
            self.codec.parameters(), lr=config.peak, betas=(0.8, 0.98), weight_decay=0.01, fused=device != "cpu"
        )
        if self.path.exists():
            self._resume()

    @property
    def path(self) -> Path:
        return self.out / "codec.pt"

    def losses(self, hidden: Tensor, pitch_hz: Tensor) -> dict[str, Tensor]:
        """Return the losses of segments of the teacher's speech: vectors [B, T, 256] and pitch [B, T]."""
        decoder = self.codec.decoder
        with torch.no_grad():
            wanted = self.head(hidden)
            pitch = bridge(pitch_hz)
            position = torch.randint(1 << 16, (len(hidden),), device=hidden.device)
            found = sources(decoder, pitch, position)
            target = samples_of(decoder, teacher_spectra(wanted, found.pulses))
            mel = log_mel(target)
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            vectors = self.codec.encoder(mel).float()
            quantised, commit = self._quantised(vectors)
            values, curve = student_values(self.codec, quantised)
        return self._compare(values, curve, wanted, pitch.hz, pitch.voiced, found, target) | {"commit": commit}

    def _quantised(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return quantised vectors with straight-through gradients, and the distance to them."""
        if self.step < self.config.unquantised:
            self._recent = [*self._recent[-15:], vectors.detach().flatten(0, 1)]
            return vectors, vectors.new_zeros(())
        flat = vectors.detach().flatten(0, 1)
        if self.step == self.config.unquantised:
            self.books.begin(torch.cat(self._recent))
            self._recent.clear()
        sums = self.books.quantise(flat).unflatten(1, vectors.shape[:2])
        count = torch.randint(len(sums) // 2, len(sums), (len(vectors),), device=vectors.device)  # of codebooks
        full = torch.rand(len(vectors), device=vectors.device) < 0.85
        count = torch.where(full, len(sums) - 1, count)
        chosen = sums[count, torch.arange(len(vectors), device=vectors.device)]
        commit = (vectors - sums[-1]).square().sum(-1).mean()
        return vectors + (chosen - vectors).detach(), commit

    def _compare(
        self, values: Tensor, curve: Tensor, wanted: Tensor, hz: Tensor, voiced: Tensor, found: Sources, target: Tensor
    ) -> dict[str, Tensor]:
        ahead = SPECTRUM_AHEAD
        hops = values.shape[1]
        inner = slice(EDGE, hops - LATE_EDGE)
        shifted = values[:, : hops - ahead]  # values of hop n are those of the spectrum centred two hops later
        unbound = shifted.unflatten(-1, (5, BINS))
        terms = spectrum_losses(unbound[:, inner], wanted[:, ahead:][:, inner])
        spectrum = spectra(shifted, found.pulses[:, ahead:], found.noise[:, ahead:])
        heard = samples_of(self.codec.decoder, spectrum)
        target = target[:, ahead * (target.shape[1] // hops) :]
        samples = slice(EDGE * (target.shape[1] // (hops - ahead)), -LATE_EDGE * (target.shape[1] // (hops - ahead)))
        terms["audio"] = spectral_loss(heard[:, samples], target[:, samples])
        log_hz = curve[:, 0, :-PITCH_AHEAD][:, inner]
        logit = curve[:, 1, :-PITCH_AHEAD][:, inner]
        hz = hz[:, PITCH_AHEAD:][:, inner]
        voiced = voiced[:, PITCH_AHEAD:][:, inner]
        terms["pitch"] = ((log_hz - hz.log()).abs() * (0.1 + voiced)).mean()
        terms["voicing"] = F.binary_cross_entropy_with_logits(3 * logit, voiced)
        return terms

    def one_step(self, hidden: Tensor, pitch_hz: Tensor) -> dict[str, Tensor]:
        """Make one update and return its losses."""
        share = min(1.0, self.spent_s / self.config.seconds)
        warm = min(1.0, (self.step + 1) / self.config.warm_up)
        rate = self.config.peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        terms = self.losses(hidden, pitch_hz)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum().backward()
        clip(list(self.codec.parameters()))
        self.optimiser.step()
        self.step += 1
        kept = min(0.995, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.values()), list(self.codec.parameters()), 1 - kept)
        return {name: term.detach() for name, term in terms.items()}

    def save(self) -> None:
        """Write the checkpoint atomically. `export_codec` reads `codec` (averaged weights) and `config`."""
        averaged = self.codec.state_dict() | self.mean
        state = {
            "config": asdict(self.config.codec),
            "codec": averaged,
            "last": self.codec.state_dict(),
            "counts": self.books.counts,
            "sums": self.books.sums,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent_s": self.spent_s,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def _resume(self) -> None:
        state = torch.load(self.path, map_location=self.device)
        self.codec.load_state_dict(state["last"])
        self.mean = {name: state["codec"][name].clone() for name in self.mean}
        self.books.counts.copy_(state["counts"])
        self.books.sums.copy_(state["sums"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self.spent_s = state["spent_s"]


def train_codec(
    config: CodecTraining, shards: Path, teacher: Path, out: Path, device: str, num_shards: int = 128
) -> None:
    """Train until the time is used up. Shards are read as they appear; every 100 steps are logged."""
    out.mkdir(parents=True, exist_ok=True)
    training = Training(config, Head(teacher, device), out, device)
    speech = Speech(shards, device)
    seen: dict[str, Tensor | float] = defaultdict(float)
    terms: dict[str, Tensor] = {}
    counted = 0
    while training.spent_s < config.seconds:
        start = time.monotonic()
        if training.step % 100 == 0 or len(speech.hidden) <= config.hops:
            speech.refresh(num_shards)
            if len(speech.hidden) <= config.hops:
                time.sleep(0.5)
                training.spent_s += time.monotonic() - start
                continue
        terms = training.one_step(*speech.draw(config.segments, config.hops))
        for name, term in terms.items():
            seen[name] = seen[name] + term
        counted += 1
        if training.step % 100 == 0:
            figures = " ".join(f"{name} {float(total) / counted:.4f}" for name, total in seen.items())
            print(f"codec {training.step} s {training.spent_s:.0f} {figures}", flush=True)
            seen.clear()
            counted = 0
        training.spent_s += time.monotonic() - start
    training.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="folder that `cut_teacher` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    assert CodecTraining.hops % HOPS == 0
    train_codec(CodecTraining(arguments.seconds), arguments.shards, arguments.teacher, arguments.out, arguments.device)


if __name__ == "__main__":
    main()
