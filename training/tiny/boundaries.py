"""Assignment of a sentence's phonemes to its words.

flite does not report word boundaries, and it pronounces some words differently in a sentence (`a` is ey in isolation,
but ax in a sentence). A sentence is therefore aligned, by edit distance, with its words pronounced in isolation. Each
phoneme belongs to the word that it is aligned with:

    isolated   ey | b er ch              sentence   pau ax b er ch pau
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


def _costs(sentence: Sequence[str], alone: Sequence[str]) -> list[list[float]]:
    """Return `table[i][j]`, the minimal cost of turning `alone[:j]` into `sentence[:i]`."""
    table = [[float(j) for j in range(len(alone) + 1)]]
    for i, phoneme in enumerate(sentence, start=1):
        row = [float(i)]
        above = table[-1]
        for j, other in enumerate(alone, start=1):
            row.append(min(above[j - 1] + _swap_cost(phoneme, other), above[j] + 1, row[-1] + 1))
        table.append(row)
    return table


def word_of_phonemes(sentence: Sequence[str], words: Sequence[Sequence[str]]) -> list[int] | None:
    """Return the word index of each phoneme, with NO_WORD for silence; None if a word has no phoneme.

    Args:
        sentence: Phonemes of the sentence.
        words: Phonemes of each word in isolation, in order.
    """
    spoken = [phoneme for phoneme in sentence if phoneme != SILENCE]
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
            landed[i] = alone[max(j - 1, 0)][1]  # an additional phoneme belongs to the same word
        else:
            j -= 1
    if set(landed) != set(range(len(words))):
        return None
    remaining = iter(landed)
    return [NO_WORD if phoneme == SILENCE else next(remaining) for phoneme in sentence]
