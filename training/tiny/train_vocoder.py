"""Train the codec's vocoder: python -m training.tiny.train_vocoder --data DIR --rvq FILE --out DIR

Run it again with the same arguments to continue from the last checkpoint in DIR.
"""

import argparse
import math
import random
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codecs.tiny import codec as excitation
from stretto.codecs.tiny.codec import HOP, Vocoder, VocoderConfig
from training.tiny.clips import Batch, Clip, draw_batch, load_clips, load_quantiser, quantise
from training.tiny.spectral_loss import spectral_loss

# 70 % of the segments are reconstructed with seven codebooks, 10 % with five, and 20 % are lossless.
VARIANTS = (7, 7, 7, 7, 7, 7, 7, 0, 0, 5)
BATCH, SEGMENT_FRAMES = 8, 68
WARM_UP_FRAMES, LOOKAHEAD_FRAMES = 12, 4  # frames at both ends of a segment, where the vocoder lacks context
PEAK_RATE, WARM_UP_ITERATIONS, LAST_RATE = 1.5e-3, 100, 0.02
LARGEST_STEP = 1.0  # limit on the gradient of each weight
AVERAGED = 0.998  # share of the previous mean in the running mean of the weights, which is exported


def speak(vocoder: Vocoder, batch: Batch, seed: int) -> Tensor:
    """Vocode the batch's mel frames at their true pitch, with a random noise position; return the samples."""
    pitch_hz = excitation.upsample(batch.pitch_hz.double(), vocoder.neighbours)
    generator = torch.Generator().manual_seed(seed)
    position = torch.randint(excitation.NOISE_PERIOD, (len(pitch_hz),), generator=generator)
    phase = excitation.cycles(pitch_hz)[:, :-1] + torch.rand(len(pitch_hz), 1, generator=generator)
    return vocoder.render(vocoder.log_gains(batch.mel), pitch_hz, phase, batch.voiced, position)


def losses(vocoder: Vocoder, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return three losses: waveform distance, log-pitch distance in voiced frames, and voicing cross-entropy."""
    inner = slice(WARM_UP_FRAMES * HOP, -LOOKAHEAD_FRAMES * HOP)
    frames = slice(WARM_UP_FRAMES, -LOOKAHEAD_FRAMES)
    log_hz, logit = vocoder.pitch(batch.mel)
    voiced = batch.voiced[:, frames]
    error = (log_hz - batch.pitch_hz.log())[:, frames].abs() * voiced
    return {
        "spectral": spectral_loss(speak(vocoder, batch, seed)[:, inner], batch.pcm[:, inner]),
        "pitch": error.sum() / voiced.sum().clamp(min=1),
        "voicing": F.binary_cross_entropy_with_logits(logit[:, frames], voiced),
    }


def rate(iteration: int, iterations: int) -> float:
    """Return the learning rate, which has a short warm-up and then falls as half a cosine."""
    warm = min(1.0, (iteration + 1) / WARM_UP_ITERATIONS)
    cosine = 0.5 + 0.5 * math.cos(math.pi * iteration / iterations)
    return PEAK_RATE * warm * (LAST_RATE + (1 - LAST_RATE) * cosine)


def mel_variants(clips: list[Clip], quantiser_file: Path) -> list[list[Tensor]]:
    """Return each clip's mel frames, quantised with each number of codebooks in VARIANTS; 0 means unquantised."""
    quantiser = load_quantiser(quantiser_file)
    kinds = sorted(set(VARIANTS))
    made = [{n: quantise(quantiser, clip.mel, n) if n else clip.mel for n in kinds} for clip in clips]
    return [[variants[n] for n in VARIANTS] for variants in made]


def new_vocoder(clips: list[Clip]) -> Vocoder:
    """Return an untrained vocoder that normalises its input with the clips' mean and deviation."""
    mel = torch.cat([clip.mel for clip in clips[:500]])
    config = replace(VocoderConfig(), mel_mean=round(mel.mean().item(), 4), mel_deviation=round(mel.std().item(), 4))
    return Vocoder(config)


class Training:
    """Training state that is saved and resumed together: vocoder, optimiser, and the weights' running mean."""

    def __init__(self, vocoder: Vocoder, path: Path) -> None:
        self.vocoder = vocoder
        self.optimiser = torch.optim.AdamW(vocoder.parameters(), lr=PEAK_RATE, betas=(0.8, 0.98), weight_decay=0.01)
        self.iteration = 0
        self.mean = {name: weight.detach().clone() for name, weight in vocoder.state_dict().items()}
        self._path = path
        if path.exists():
            self._resume(torch.load(path))

    def step(self, terms: dict[str, Tensor], rate: float) -> None:
        """Take an optimiser step on the sum of the losses."""
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.zero_grad()
        (terms["spectral"] + 3 * terms["pitch"] + 0.5 * terms["voicing"]).backward()
        for parameter in self.vocoder.parameters():
            if parameter.grad is not None:
                parameter.grad.clamp_(-LARGEST_STEP, LARGEST_STEP)
        self.optimiser.step()
        self.iteration += 1
        share = min(AVERAGED, self.iteration / (self.iteration + 10))
        for name, weight in self.vocoder.state_dict().items():
            self.mean[name].lerp_(weight, 1 - share)

    def save(self) -> None:
        """Write a checkpoint. `export_codec` reads its `config` and its `vocoder`, which has the averaged weights."""
        state = {
            "config": asdict(self.vocoder.config),
            "vocoder": self.mean,
            "last": self.vocoder.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "iteration": self.iteration,
        }
        partial = self._path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self._path)

    def _resume(self, state: dict[str, Any]) -> None:
        self.vocoder.load_state_dict(state["last"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.mean, self.iteration = state["vocoder"], state["iteration"]


def train(arguments: argparse.Namespace) -> None:
    """Train until the last iteration; log every 100 and save every 250 iterations."""
    torch.manual_seed(arguments.seed)
    clips = load_clips(arguments.data, arguments.out, arguments.shards)
    mels = mel_variants(clips, arguments.rvq)
    training = Training(new_vocoder(clips), arguments.out / "vocoder.pt")
    print(f"{len(clips)} clips, from iteration {training.iteration}", flush=True)
    seen: dict[str, float] = {}
    begun = time.monotonic()
    while training.iteration < arguments.iterations:
        rng = random.Random(arguments.seed * 1_000_003 + training.iteration)
        batch = draw_batch(clips, mels, rng, BATCH, SEGMENT_FRAMES)
        terms = losses(training.vocoder, batch, rng.randrange(1 << 31))
        training.step(terms, rate(training.iteration, arguments.iterations))
        seen = {name: seen.get(name, 0.0) + term.item() / 100 for name, term in terms.items()}
        if training.iteration % 100 == 0:
            figures = " ".join(f"{name} {value:.4f}" for name, value in seen.items())
            print(f"{training.iteration} {time.monotonic() - begun:.0f} s {figures}", flush=True)
            seen = {}
        if training.iteration % 250 == 0 or training.iteration == arguments.iterations:
            training.save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of shard_*.pt")
    parser.add_argument("--rvq", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of cached clips")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=6_500)
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)
    train(parser.parse_args())
