"""Training of the language model on one core for a fixed time; an interrupted run continues from its last checkpoint.

Each step mixes three batches: speech (a tenth of the utterances have no text), transcription, and word strings to
pronounce or spell. The learning rate depends on the training time so far.
"""

import math
import os
import random
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stretto.families.tiny import family as tiny
from training.tiny import builders
from training.tiny.batch import Batch, collate, losses
from training.tiny.corpus import BUCKET, CODES, HEARD, MAX_LISTENED_FRAMES, Corpus, WordStrings, cut
from training.tiny.encoded import Spoken
from training.tiny.export import load_exported
from training.tiny.network import Network, NetworkConfig
from training.tiny.optimiser import Optimiser
from training.tiny.synthesise import load_pronunciations


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run.

    `speak`, `listen` and `read` are the numbers of rows per step for speech, transcription and word strings.

    Attributes:
        start: Exported checkpoint whose weights are trained further, or None to begin with random weights.
        peak: Largest learning-rate scale.
        flat: Share of the time after which the learning rate falls.
    """

    folder: Path
    minutes: float
    start: Path | None = None
    peak: float = 1.0
    speak: int = 2400
    listen: int = 700
    read: int = 3400
    null_share: float = 0.1
    guide: float = 0.3
    flat: float = 0.35
    warm_up_steps: int = 100
    short_strings_until: int = 500

    @property
    def checkpoint(self) -> Path:
        return self.folder / "network.pt"


def rate_scale(step: int, spent: float, config: TrainingConfig) -> float:
    """Return the learning-rate scale.

    The scale has a linear warm-up, is constant until the share `flat` of the time, then falls to 1 % as half a cosine.
    """
    falling = max(0.0, (spent - config.flat) / (1 - config.flat))
    warm = config.peak * min(1.0, (step + 1) / config.warm_up_steps)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))


class Mixer:
    """Source of the three batches of each step."""

    def __init__(self, config: TrainingConfig, seed: int):
        self._config = config
        self._rng = random.Random(seed)
        self._speak = Corpus(config.folder, CODES).batches(config.speak, self._rng)
        self._listen = Corpus(config.folder, HEARD).batches(config.listen, self._rng, MAX_LISTENED_FRAMES)
        self._pool: list[list[builders.Rows]] = []
        self._strings = WordStrings(load_pronunciations(config.folder), self._rng)

    def _string(self, high: int) -> builders.Rows:
        transcript = self._strings.draw(self._rng.randint(1, high))
        if self._rng.random() < 0.1:
            return builders.spell(transcript)
        return builders.g2p(transcript, self._rng.choice(list(tiny.VOICES)))

    def _read(self, step: int) -> list[builders.Rows]:
        """Return word strings of similar length; early steps get short ones."""
        if not self._pool:
            high = 2 if step < self._config.short_strings_until else 6
            strings = [self._string(high) for _ in range(2 * BUCKET)]
            self._pool = cut(strings, lambda rows: len(rows.ids), self._config.read)
            self._rng.shuffle(self._pool)
        return self._pool.pop()

    def _speech(self, utterance: Spoken) -> builders.Rows:
        hide = self._rng.random() < self._config.null_share
        return builders.unconditional(utterance) if hide else builders.tts(utterance)

    def draw(self, step: int) -> dict[str, Batch]:
        """Return the batches for a step, by task."""
        return {
            "tts": collate([self._speech(utterance) for utterance in next(self._speak)]),
            "asr": collate([builders.asr(u) for u in next(self._listen)]),
            "g2p": collate(self._read(step)),
        }


TEXT_WEIGHTS = {"tts": 0.5, "asr": 0.5, "g2p": 1.0}


class Trainer:
    """A training run: network, optimiser and progress."""

    def __init__(self, config: TrainingConfig):
        self.config = config
        torch.manual_seed(0)
        self.network = Network(NetworkConfig())
        self.optimiser = Optimiser(self.network)
        self.step = 0
        self.spent_s = 0.0
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
        if config.checkpoint.exists():
            self._resume()
        elif config.start is not None:
            self.network.load_state_dict(load_exported(config.start).state_dict())

    def _resume(self) -> None:
        saved = torch.load(self.config.checkpoint)
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.spent_s = saved["step"], saved["spent_s"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        partial = self.config.checkpoint.with_suffix(".partial")
        state = {"network": self.network.state_dict(), "config": asdict(self.network.model.config)}
        torch.save(
            {**state, "optimiser": self.optimiser.state_dict(), "step": self.step, "spent_s": self.spent_s}, partial
        )
        os.replace(partial, self.config.checkpoint)

    def run(self) -> None:
        """Train until the time is used up; save every minute and log every fifty steps."""
        mixer = Mixer(self.config, seed=self.step)
        saved_s = self.spent_s
        while self.spent_s < self.config.minutes * 60:
            start = time.monotonic()
            self._one_step(mixer.draw(self.step))  # time to build batches counts, too
            self.spent_s += time.monotonic() - start
            if self.step % 50 == 0:
                self._report()
            if self.spent_s - saved_s > 60:
                self.save()
                saved_s = self.spent_s
        self.save()

    def _one_step(self, batches: dict[str, Batch]) -> None:
        self.optimiser.zero_grad()
        for task, batch in batches.items():
            found = losses(self.network, batch, self.config.guide, TEXT_WEIGHTS[task])
            found.total.backward()
            for kind, (total, count) in found.sums.items():
                self._sums[f"{task}.{kind}"][0] += total
                self._sums[f"{task}.{kind}"][1] += count
        spent = self.spent_s / (self.config.minutes * 60)
        self.optimiser.step(rate_scale(self.step, spent, self.config))
        self.step += 1

    def _report(self) -> None:
        """Append the mean losses since the last report to `train.log`, and print them."""
        means = [f"{kind} {total / count:.3f}" for kind, (total, count) in self._sums.items() if count]
        line = " ".join([f"step {self.step} s {self.spent_s:.0f}", *means])
        with (self.config.folder / "train.log").open("a") as log:
            print(line, file=log)
        print(line, flush=True)
        self._sums.clear()


def train(config: TrainingConfig) -> None:
    """Start or continue a training run."""
    torch.set_num_threads(1)
    Trainer(config).run()
