"""Train the codec's encoder for recordings.

    python -m training.tiny.train_ears --shards DIR --teacher DIR --checkpoint DIR --out DIR

From an altered recording the encoder learns to compute the vectors that it computed from the unaltered one. So neither
the decoder, nor the codebooks, nor the language model change. The command writes `codec.safetensors` into `out`.
"""

import argparse
import itertools
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stretto.codecs.tiny.codec import HOP, HOPS, Encoder, log_mel
from stretto.codecs.tiny.codec import load as load_tiny
from stretto.families.tiny.recording import PEAK, PEAK_QUANTILE
from training.tiny.alterations import Alteration, coded, louder, noisy, resampled, without_bass
from training.tiny.encode import LEVEL_DB, NOISE_DBFS, ShardEncoder
from training.tiny.export_codec import write_weights
from training.tiny.optimiser import clip
from training.tiny.synthesise import read_shard
from training.tiny.teacher import Head

SEGMENT_HOPS = 168
EDGE = 5  # frames at both ends of a segment without a loss, where the encoder lacks context
# uses of a batch, and batches that are kept for it
TIMES = 5
KEPT = 60
TOGETHER = 4  # utterances that are rendered together
RATES_HZ = (7000, 22_000)  # sample rates of recordings
MP3_BIT_RATES = (16_000, 24_000, 32_000, 48_000, 64_000)
OPUS_BIT_RATES = (12_000, 16_000, 24_000, 32_000)
BASS_HZ = (200.0, 350.0)  # lowest frequencies of telephones
PEAK_RATE = 6e-4
LAST_RATE = 2e-5
WARM_UP = 50


def alterations(rng: np.random.Generator) -> list[Alteration]:
    """Return random alterations, to be applied in order; none for one recording in seven."""
    found: list[Alteration] = []
    if rng.random() < 0.3:
        found.append(noisy(rng.uniform(*NOISE_DBFS), rng))
    if rng.random() < 0.3:
        found.append(louder(rng.uniform(*LEVEL_DB)))
    kind = rng.choice(["none", "resampled", "telephone", "mp3", "opus"], p=[0.28, 0.28, 0.18, 0.18, 0.08])
    if kind == "resampled":
        found.append(resampled(int(rng.integers(*RATES_HZ))))
    if kind == "telephone":
        found += [without_bass(rng.uniform(*BASS_HZ))] * int(rng.random() < 0.4)
        found.append(coded("pcm_mulaw", "wav", 8000))
    if kind == "mp3":
        found.append(coded("mp3", "mp3", bit_rate=int(rng.choice(MP3_BIT_RATES))))
    if kind == "opus":
        found.append(coded("libopus", "ogg", bit_rate=int(rng.choice(OPUS_BIT_RATES))))
    return found


def levelled(pcm: np.ndarray) -> np.ndarray:
    """Return samples at the level to which the family brings recordings."""
    peak = np.quantile(np.abs(pcm), PEAK_QUANTILE)
    return pcm * np.float32(PEAK / max(float(peak), 1e-5))


def pairs(paths: list[Path], audio: ShardEncoder, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield utterances forever, each unaltered and altered, float32 [n] each, where n is a multiple of a frame."""
    while True:
        shard = read_shard(paths[rng.integers(len(paths))])
        for chosen in np.array_split(rng.permutation(len(shard.first) - 1), len(shard.first) // TOGETHER):
            with torch.inference_mode():
                rendered = audio.audio(shard, chosen, other_pitch=bool(rng.random() < 0.3)).numpy()
            for utterance, pcm in zip(chosen, rendered, strict=True):
                hops = int(shard.first[utterance + 1] - shard.first[utterance])
                clean = levelled(pcm[: hops // HOPS * HOPS * HOP])
                altered = clean
                for alter in alterations(rng):
                    altered = alter(altered)
                yield clean, levelled(altered)


def examples(
    teacher: Encoder, utterances: Iterator[tuple[np.ndarray, np.ndarray]], segments: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield log-mel frames [segments, SEGMENT_HOPS, NUM_MELS] of altered segments, and vectors of unaltered ones."""
    size = segments * SEGMENT_HOPS * HOP
    left = (np.zeros(0, np.float32),) * 2
    while True:
        parts = [left]
        while sum(len(clean) for clean, _ in parts) < size:
            parts.append(next(utterances))
        clean, altered = (np.concatenate(each) for each in zip(*parts, strict=True))
        left = clean[size:], altered[size:]
        mels = [log_mel(torch.from_numpy(each[:size].reshape(segments, -1))) for each in (clean, altered)]
        with torch.no_grad():
            wanted = teacher(mels[0])
        yield mels[1], wanted


def repeated(batches: Iterator[tuple[Tensor, Tensor]], rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, of which one in TIMES is new, because a new batch takes longer than a training step."""
    kept: list[tuple[Tensor, Tensor]] = []
    for count in itertools.count():
        if count % TIMES == 0:
            kept = [*kept[-KEPT:], next(batches)]
        yield kept[-1] if count % TIMES == 0 else kept[rng.integers(len(kept))]


def train(encoder: Encoder, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> Iterator[float]:
    """Train the encoder in place; yield at each step the mean squared distance to the wanted vectors."""
    weights = list(encoder.requires_grad_(True).parameters())
    optimiser = torch.optim.AdamW(weights, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        rate = LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        mel, wanted = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = encoder(mel).float()
        loss = (vectors - wanted)[:, EDGE:-EDGE].square().sum(-1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clip(weights)
        optimiser.step()
        yield loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="folder that `synthesise` wrote")
    parser.add_argument("--teacher", type=Path, required=True, help="folder that `cut_teacher` wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, help="exported checkpoint, with its codec")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--segments", type=int, default=24, help="segments per step")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    codec = load_tiny(arguments.checkpoint)
    shards = sorted(arguments.shards.glob("shard_????.npz"))
    audio = ShardEncoder(codec, Head(arguments.teacher, "cpu"), "cpu")
    rng = np.random.default_rng(0)
    teacher = deepcopy(codec.encoder).requires_grad_(False)
    batches = repeated(examples(teacher, pairs(shards, audio, rng), arguments.segments), rng)
    losses: list[float] = []
    for loss in train(codec.encoder, batches, arguments.steps):
        losses.append(loss)
        if len(losses) % 50 == 0:
            print(f"ears {len(losses)} distance {np.mean(losses[-50:]):.3f}", flush=True)
    write_weights(arguments.out, codec.state_dict())


if __name__ == "__main__":
    main()
