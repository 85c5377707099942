"""Where the words lie in a sentence's phonemes.

flite names no words, and says a word differently alone and in a sentence (`a` is ey alone, ax in passing). So the
sentence is laid against its words said alone, by edit distance, and each phoneme takes the word it lands on:

    alone      ey | b er ch              sentence   pau ax b er ch pau
    word        0   1 1  1               word        -  0  1 1  1   -
"""

from collections.abc import Sequence

SILENCE = "pau"
NO_WORD = -1
_VOWELS = frozenset("aa ae ah ao aw ax ay eh er ey ih iy ow oy uh uw".split())


def _swap_cost(a: str, b: str) -> float:
    if a == b:
        return 0.0
    return 0.6 if (a in _VOWELS) == (b in _VOWELS) else 1.6


def _costs(heard: Sequence[str], alone: Sequence[str]) -> list[list[float]]:
    """`table[i][j]`: cheapest way to turn the first j phonemes said alone into the first i heard."""
    table = [[float(j) for j in range(len(alone) + 1)]]
    for i, phoneme in enumerate(heard, start=1):
        row = [float(i)]
        above = table[-1]
        for j, other in enumerate(alone, start=1):
            row.append(min(above[j - 1] + _swap_cost(phoneme, other), above[j] + 1, row[-1] + 1))
        table.append(row)
    return table


def word_of_phonemes(heard: Sequence[str], words: Sequence[Sequence[str]]) -> list[int] | None:
    """For each phoneme heard, the index of its word, NO_WORD for silence; None unless every word has one.

    words: the phonemes of each word said alone, in order.
    """
    spoken = [phoneme for phoneme in heard if phoneme != SILENCE]
    alone = [(phoneme, index) for index, word in enumerate(words) for phoneme in word]
    table = _costs(spoken, [phoneme for phoneme, _ in alone])
    landed = [NO_WORD] * len(spoken)
    i, j = len(spoken), len(alone)
    while i > 0:
        if j > 0 and table[i][j] == table[i - 1][j - 1] + _swap_cost(spoken[i - 1], alone[j - 1][0]):
            i, j = i - 1, j - 1
            landed[i] = alone[j][1]
        elif table[i][j] == table[i - 1][j] + 1:
            i -= 1
            landed[i] = alone[max(j - 1, 0)][1]  # one phoneme more than alone: still the same word
        else:
            j -= 1
    if set(landed) != set(range(len(words))):
        return None
    remaining = iter(landed)
    return [NO_WORD if phoneme == SILENCE else next(remaining) for phoneme in heard]
