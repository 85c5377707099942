"""Training of the language model for a fixed time; an interrupted run continues from its last checkpoint.

Each step mixes three batches: speech (a tenth of the utterances have no text), transcription, and texts to pronounce or
spell. The learning rate depends on the training time so far.
"""

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.tiny.batch import losses
from training.tiny.corpus import Batch, Corpus
from training.tiny.export import load_exported
from training.tiny.network import Network, NetworkConfig
from training.tiny.optimiser import Optimiser


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run.

    Attributes:
        seconds: Duration of the training.
        start: Exported checkpoint whose weights are trained further, or None to begin with random weights.
        peak: Largest learning-rate scale.
        rows: Numbers of rows per step for speech, transcription and texts without audio.
        flat: Share of the time after which the learning rate falls.
        guided_until: Share of the time after which attention heads are no longer guided.
    """

    folder: Path
    seconds: float
    device: str = "cpu"
    start: Path | None = None
    peak: float = 1.0
    rows: Mapping[str, int] = field(default_factory=lambda: {"tts": 28_000, "asr": 20_000, "g2p": 12_000})
    null_share: float = 0.1
    guide: float = 0.3
    guided_until: float = 0.5
    flat: float = 0.3
    warm_up_steps: int = 100
    network: NetworkConfig = field(default_factory=NetworkConfig)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "network.pt"


def rate_scale(step: int, spent: float, config: TrainingConfig) -> float:
    """Return the learning rate's scale: linear warm-up, constant until the share `flat`, then half a cosine to 1 %."""
    falling = max(0.0, (spent - config.flat) / (1 - config.flat))
    warm = config.peak * min(1.0, (step + 1) / config.warm_up_steps)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))


class Mixer:
    """Source of the batches of each step, by task."""

    def __init__(self, corpora: Mapping[str, Corpus], config: TrainingConfig, seed: int):
        self._corpora = corpora
        self._null_share = config.null_share
        self._rng = np.random.default_rng(seed)
        self._choices: dict[str, Iterator[np.ndarray]] = {
            task: corpus.choices(config.rows[task], self._rng) for task, corpus in corpora.items()
        }

    def draw(self, task: str) -> Batch:
        chosen = next(self._choices[task])
        null = self._rng.random(len(chosen)) < self._null_share if task == "tts" else None
        return self._corpora[task].batch(chosen, null)


TEXT_WEIGHTS = {"tts": 0.5, "asr": 0.7, "g2p": 1.0}


class Trainer:
    """Training run: network, optimiser and progress."""

    def __init__(self, config: TrainingConfig):
        self.config = config
        torch.manual_seed(0)
        self.network = Network(config.network).to(config.device)
        if config.start is not None:
            self.network.load_state_dict(load_exported(config.start).state_dict())
        self.optimiser = Optimiser(self.network)
        self.step = 0
        self.spent_s = 0.0
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        if config.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:
        saved = torch.load(self.config.checkpoint, map_location=self.config.device)
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step = saved["step"]
        self.spent_s = saved["spent_s"]

    def save(self) -> None:
        partial = self.config.checkpoint.with_suffix(".partial")
        state = {"network": self.network.state_dict(), "config": asdict(self.network.model.config)}
        torch.save(
            {**state, "optimiser": self.optimiser.state_dict(), "step": self.step, "spent_s": self.spent_s}, partial
        )
        os.replace(partial, self.config.checkpoint)

    def run(self, corpora: Mapping[str, Corpus], saved: Callable[[], None] = lambda: None) -> None:
        """Train until the time is used up; save every minute, then call `saved`; log every fifty steps."""
        mixer = Mixer(corpora, self.config, seed=self.step)
        saved_s = self.spent_s
        while self.spent_s < self.config.seconds:
            start = time.monotonic()
            self._one_step(mixer)  # time to build batches counts, too
            if self.step % 50 == 0:
                self._report()
            self.spent_s += time.monotonic() - start
            if self.spent_s - saved_s > 60:
                self.save()
                saved()
                saved_s = self.spent_s
        self.save()

    def _one_step(self, mixer: Mixer) -> None:
        share = self.spent_s / self.config.seconds
        self.optimiser.zero_grad()
        for task in self.config.rows:
            guide = self.config.guide if share < self.config.guided_until else 0.0
            found = losses(self.network, mixer.draw(task), guide, TEXT_WEIGHTS[task])
            found.total.backward()
            for kind, (total, count) in found.sums.items():
                self._sums[f"{task}.{kind}"] = self._sums[f"{task}.{kind}"] + total
                self._counts[f"{task}.{kind}"] += count
        self.optimiser.step(rate_scale(self.step, share, self.config))
        self.step += 1

    def _report(self) -> None:
        """Append the mean losses since the last report to `train.log`, and print them."""
        means = [
            f"{kind} {float(total) / self._counts[kind]:.3f}"
            for kind, total in self._sums.items()
            if self._counts[kind]
        ]
        line = " ".join([f"step {self.step} s {self.spent_s:.0f}", *means])
        with (self.config.folder / "train.log").open("a") as log:
            print(line, file=log)
        print(line, flush=True)
        self._sums.clear()
        self._counts.clear()
