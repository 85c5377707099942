"""Word error rates measured with pocketsphinx, a recogniser that was trained neither on the voices nor on the model.

Each test set has its own grammar:

    domain     bigrams over the domain's words, counted on templated sentences
    open       uniform loop over about 900 words
    everyday   pocketsphinx's own trigrams
"""

import math
import os
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from pocketsphinx import Config, Decoder

from stretto.codecs.tiny.codec import SAMPLE_RATE
from stretto.preprocessing.audio import resample
from training.tiny.test_sets import open_vocabulary
from training.tiny.text import domain_sentence, domain_vocabulary
from training.tiny.words import dictionary_path, spelled_words

JUDGED_HZ = 16_000  # sample rate of the recogniser
LANGUAGE_WEIGHT = 6.5
COUNTED_SENTENCES = 40_000
DISCOUNT = 0.5


def word_errors(reference: list[str], heard: list[str]) -> int:
    """Return the minimal number of substitutions, insertions and deletions between two lists."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, start=1):
        above = row
        row = [i]
        for j, other in enumerate(heard, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1]


def uniform_grammar(words: list[str]) -> str:
    """Return an ARPA unigram model with equal probabilities for all words and for the end."""
    share = math.log10(1 / (len(words) + 1))
    lines = [f"{share:.4f} {word}" for word in words]
    head = f"\\data\\\nngram 1={len(words) + 2}\n\n\\1-grams:\n-99 <s> 0\n{share:.4f} </s>\n"
    return head + "\n".join(lines) + "\n\n\\end\\\n"


def bigram_grammar(sentences: list[list[str]], words: list[str]) -> str:
    """Return an ARPA bigram model with absolute discounting. Words that do not occur count as occurring once."""
    pairs: Counter[tuple[str, str]] = Counter()
    for sentence in sentences:
        pairs.update(zip(["<s>", *sentence], [*sentence, "</s>"], strict=True))
    followers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for (first, second), count in pairs.items():
        followers[first].append((second, count))
    totals = {word: sum(count for _, count in after) for word, after in followers.items()}
    singles = {word: totals.get(word, 0) + 1 for word in words} | {"</s>": len(sentences)}
    everything = sum(singles.values())
    lines = [f"\\data\\\nngram 1={len(singles) + 1}\nngram 2={len(pairs)}\n\n\\1-grams:"]
    for word, count in {**singles, "<s>": 0}.items():
        chance = math.log10(count / everything) if count else -99
        left = DISCOUNT * len(followers[word]) / totals[word] if word in totals else 1.0
        lines.append(f"{chance:.4f} {word} {math.log10(left):.4f}")
    lines.append("\n\\2-grams:")
    for first, after in followers.items():
        lines += [f"{math.log10((count - DISCOUNT) / totals[first]):.4f} {first} {second}" for second, count in after]
    return "\n".join(lines) + "\n\n\\end\\\n"


def _dictionary(words: set[str]) -> str:
    lines = dictionary_path().read_text().splitlines()
    return "\n".join(line for line in lines if line.strip() and line.split()[0].split("(")[0] in words) + "\n"


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.rename(path)


class Judge:
    """Recogniser for a test set, `domain`, `open` or `everyday`. Its grammar is stored in `folder`."""

    def __init__(self, kind: str, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        model = dictionary_path().parent
        self._decoder = Decoder(
            Config(hmm=str(model / "en-us"), loglevel="FATAL", lw=LANGUAGE_WEIGHT, **self._grammar(kind, folder))
        )

    @staticmethod
    def _grammar(kind: str, folder: Path) -> dict[str, str]:
        if kind == "everyday":
            return {"lm": str(dictionary_path().parent / "en-us.lm.bin"), "dict": str(dictionary_path())}
        words = {"domain": domain_vocabulary, "open": open_vocabulary}[kind]()
        grammar = folder / f"{kind}.arpa"
        dictionary = folder / f"{kind}.dict"
        _write(dictionary, _dictionary(set(words)))
        if kind == "domain":
            rng = random.Random(7)
            sentences = [spelled_words(domain_sentence(rng)) for _ in range(COUNTED_SENTENCES)]
            _write(grammar, bigram_grammar(sentences, words))
        else:
            _write(grammar, uniform_grammar(words))
        return {"lm": str(grammar), "dict": str(dictionary)}

    def hear(self, pcm: np.ndarray) -> list[str]:
        """Recognise the words in samples at 24 kHz, float [n], after normalising loudness and adding silence."""
        pcm = resample(pcm.astype(np.float32), SAMPLE_RATE, JUDGED_HZ)
        padded = np.concatenate([np.zeros(1600), pcm, np.zeros(3200)])
        padded = padded + np.random.RandomState(0).randn(len(padded)) * 1e-4
        scaled = np.clip(padded * (0.6 / max(np.abs(padded).max(), 1e-3)), -1, 1) * 32767
        self._decoder.start_utt()
        self._decoder.process_raw(scaled.astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr.split() if heard else []

    def rate(self, texts: list[str], recordings: list[np.ndarray]) -> float:
        """Return the word error rate over a whole set in percent."""
        errors = count = 0
        for text, pcm in zip(texts, recordings, strict=True):
            reference = spelled_words(text)
            errors += word_errors(reference, self.hear(pcm))
            count += len(reference)
        return 100 * errors / count
