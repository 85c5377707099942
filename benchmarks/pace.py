"""Measure the pace of the bundled model's voice: the duration of each letter and of some sequences of letters.

    python -m benchmarks.pace --out python_backend/stretto/families/tiny/pace.json  # the `Pace` of the model

The texts are sentences of the model's domain that `benchmarks.checks` does not use, strings of words, and examples of
WordNet (Debian's package wordnet-base), as many of each.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.checks import sentences
from benchmarks.faulty_speech import RATE, FaultyClient, Samples
from benchmarks.harness import command_line, serving, stop_on_sigterm
from stretto_client.signals import BLOCK_S, SignalMeter
from stretto_contract.speech_checks import Pace
from training.tiny.prose import ended, wordnet
from training.tiny.text import domain_sentence
from training.tiny.words import load_words

SEED = 2
FAMILIAR = 8000  # most frequent words
LETTERS = "abcdefghijklmnopqrstuvwxyz,.?!"
SOUNDS = "ai ay ea ee oo ou ow th sh ch ng ck wh ph ll ss tt igh".split()
ENDINGS = ("e ", "er ", "ing ")
FREQUENT = (
    "the to of and a in is i for that you it on with this was be as are at by or an can we from not have do will your "
    "if no has my he me but all please what when"
).split()
SEQUENCES = ("", " ", *LETTERS, *SOUNDS, *ENDINGS, *(f" {word} " for word in FREQUENT))
FOLDS = 10
RIDGE = 1.0
OUTSIDE = 0.007  # share of right speech that is too short, and that is too long


def texts(number: int, folder: Path) -> list[str]:
    """Return at least `number` texts for measuring the pace. `folder` has WordNet's data files."""
    rng = random.Random(SEED)
    words = load_words().spoken[:FAMILIAR]
    examples, _ = wordnet(folder)
    judged = {*sentences(1000)}
    spoken = dict[str, None]()
    while len(spoken) < number:
        string = " ".join(rng.choices(words, k=rng.randint(3, 10)))
        for text in (domain_sentence(rng), string, rng.choice(examples)):
            spoken[ended(text, rng)] = None
    return [text for text in spoken if text not in judged]


def sound_s(text: str, pcm: Samples) -> float:
    """Return the duration of the blocks that are not silent, in seconds."""
    meter = SignalMeter(text, RATE)
    list(meter.push(pcm))
    return meter.num_loud * BLOCK_S


def fitted(counts: NDArray[np.float64], durations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the seconds of each sequence, by least squares of the relative errors."""
    relative = counts / durations[:, None]
    return np.linalg.solve(relative.T @ relative + RIDGE * np.eye(len(SEQUENCES)), relative.sum(0))


def pace_of(texts: Sequence[str], durations: NDArray[np.float64]) -> Pace:
    """Return the pace of texts with these durations in seconds, with bounds from cross-validation."""
    counts = np.array([Pace(dict.fromkeys(SEQUENCES, 0.0), 0, 0).counts(text) for text in texts], np.float64)
    ratios = np.empty(len(texts))
    for fold in range(FOLDS):
        held_out = np.arange(len(texts)) % FOLDS == fold
        seconds = fitted(counts[~held_out], durations[~held_out])
        ratios[held_out] = durations[held_out] / (counts[held_out] @ seconds)
    seconds = fitted(counts, durations)
    least, most = np.quantile(ratios, [OUTSIDE, 1 - OUTSIDE]).round(2)
    return Pace(dict(zip(SEQUENCES, seconds.round(4).tolist(), strict=True)), float(least), float(most))


async def measure(address: str, arguments: argparse.Namespace) -> None:
    """Write the pace of the server's model."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    spoken = texts(arguments.number, arguments.wordnet)
    places = asyncio.Semaphore(arguments.concurrency)
    async with FaultyClient(address, arguments.folder, []) as client:

        async def duration_s(text: str) -> float:
            async with places:
                return sound_s(text, await client.speech(text, SEED))

        durations = await asyncio.gather(*map(duration_s, spoken))
    arguments.out.write_text(json.dumps(asdict(pace_of(spoken, np.array(durations)))) + "\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_line(
        __doc__,
        "pace",
        serves=True,
        folder=(Path(".stretto/pace"), "folder of the recordings"),
        wordnet=(Path("/usr/share/wordnet"), "folder of WordNet's data files"),
        number=(900, "number of texts"),
        concurrency=(4, "number of simultaneous streams"),
    )
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> None:
    stop_on_sigterm()
    with serving(arguments.model_repository) as address:
        asyncio.run(measure(address, arguments))


if __name__ == "__main__":
    main(parse())
