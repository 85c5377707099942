"""The judge's arithmetic."""

import random

import jiwer
import pytest

from training.tiny.judge import bigram_grammar, word_errors


@pytest.mark.parametrize("seed", range(20))
def test_word_errors_agree_with_jiwer(seed: int) -> None:
    rng = random.Random(seed)
    reference = rng.choices("a b c d".split(), k=rng.randint(1, 8))
    heard = rng.choices("a b c d".split(), k=rng.randint(1, 8))
    assert word_errors(reference, heard) == round(jiwer.wer(" ".join(reference), " ".join(heard)) * len(reference))


def test_bigram_grammar_probabilities_sum_to_one() -> None:
    grammar = bigram_grammar([["up", "at"], ["up", "up"], ["at"]], ["up", "at", "never"])
    unigrams = grammar.split("\\1-grams:\n")[1].split("\n\n")[0].splitlines()
    chances = {line.split()[1]: 10 ** float(line.split()[0]) for line in unigrams}
    assert sum(chance for word, chance in chances.items() if word != "<s>") == pytest.approx(1, abs=1e-3)
    pairs = [line.split() for line in grammar.split("\\2-grams:\n")[1].split("\n\n")[0].splitlines()]
    backed_off = 10 ** float(next(line for line in unigrams if line.split()[1] == "up").split()[2])
    assert sum(10 ** float(chance) for chance, first, _ in pairs if first == "up") + backed_off == pytest.approx(
        1, abs=1e-3
    )
