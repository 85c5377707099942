"""Test sentences that occur in no training example: 60 domain and 60 open-vocabulary sentences.

An open-vocabulary sentence is a string of words. Six in ten of them are held out of all training data.
"""

import random

from training.tiny.text import QUESTIONS, clause, fill
from training.tiny.words import load_words

SENTENCES = 60
FAMILIAR = 3000


def domain_sentences() -> list[str]:
    """Return distinct domain sentences, sampled with a seed that training does not use."""
    rng = random.Random(424_242)
    found: dict[str, None] = {}
    while len(found) < SENTENCES:
        found[fill(rng.choice(QUESTIONS), rng) if rng.random() < 0.12 else clause(rng)] = None
    return list(found)


def open_sentences() -> list[str]:
    """Return strings of four to eight words, six in ten of them held out."""
    words = load_words()
    rng = random.Random(99)
    familiar = words.spoken[:FAMILIAR]
    return [
        " ".join(rng.choice(words.held_out if rng.random() < 0.6 else familiar) for _ in range(rng.randint(4, 8)))
        for _ in range(SENTENCES)
    ]


def open_vocabulary() -> list[str]:
    """Return the vocabulary of the open-vocabulary judge: the words in the test sentences, and 600 others."""
    others = random.Random(7).sample(load_words().spoken[:FAMILIAR], 600)
    return sorted({word for sentence in open_sentences() for word in sentence.split()} | set(others))
