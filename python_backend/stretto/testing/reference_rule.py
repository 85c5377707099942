"""Base class of the rules that a family has in the slow reference."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling


class ReferenceRule:
    """Rules of a family in one reply of the slow reference (`DrawRules.reference`); this base class has no effect.

    A subclass implements the family's rules a second time, in plain Python, and overrides the methods that it needs.
    The reference calls them row by row, in this order:

        text row    text_is_full ─► id is sampled ─► finish_text_row
        audio row   given_row ─► sampled, or penalized ─► permitted ─► kept ─► is_guarded, counted ─► redrawn_from
                    ─► replace_first ─► other streams are sampled (kept, is_guarded) ─► replace_streams
    """

    def __init__(self, rules: Any, prompt: Prompt):
        self.rules = rules
        self.prompt = prompt

    def text_is_full(self) -> bool:
        """Return True if the family's rules end the text with the next row; texts at a limit end without them."""
        return False

    def finish_text_row(self, row: list[int]) -> None:
        """Change a text row in place after stream 0 is sampled."""

    def given_row(self, sample: Callable[[], int]) -> tuple[int, int] | None:
        """Return the ids of stream 0 and the text stream in the next audio row if it is given; None to sample it."""
        return None

    def permitted(self, codes: list[int], ends: list[int]) -> list[int]:
        """Return the ids of stream 0 in audio that may be sampled.

        Args:
            codes: Codes and extra ids.
            ends: Ids that end the audio; empty before the minimum length.
        """
        return codes + ends

    def sampled(self, logits: Sequence[float], frame: int, noise: float, family: Family) -> tuple[int, float] | None:
        """Return stream 0 of an audio row and the margin of the decision; None to sample it from its logits as usual.

        Args:
            noise: Uniform number of the row.
        """
        return None

    def penalized(self, logits: list[float], usual: list[float], stream: int) -> list[float]:
        """Return the logits over the vocabulary from which ids of a stream in audio are sampled, and sampled again.

        Args:
            usual: The logits with the repetition penalty, as other families have it on stream 0.
        """
        return usual

    def kept(
        self, logits: Sequence[float], ranked: Sequence[int], limits: CodeSampling, penalized: Sequence[float]
    ) -> dict[int, float]:
        """Return the ids of a stream in audio among which one is sampled, with their logits.

        At temperature 0 these are all permitted ids, so that near ties are seen.

        Args:
            logits: Logits over the vocabulary, for stream 0 from `penalized`.
            ranked: Permitted ids, the most probable one first.
            penalized: Logits with the repetition penalty, as other families have it.
        """
        return kept_ids(logits, ranked, limits)

    def is_guarded(self, token: int, stream: int, is_code: bool) -> bool:
        """Return True if a codebook's id in audio is sampled again when it repeats, as codes usually are."""
        return is_code

    def counted(self, ids: Sequence[int], window: int) -> Sequence[int]:
        """Return the previous ids of stream 0 that the repetition rules count.

        Args:
            ids: Stream 0 of all audio rows so far.
            window: Number of rows in which repeats are counted.
        """
        return ids[-window:]

    def redrawn_from(self, allowed: Sequence[int], repeated: int) -> Sequence[int]:
        """Return the ids of stream 0 from which one is sampled again instead of a repeated one."""
        return allowed

    def replace_first(self, row: list[int], position: int, family: Family) -> None:
        """Replace ids of stream 0 and of input-only streams in an audio row, before other streams are sampled."""

    def replace_streams(self, row: list[int], position: int, family: Family) -> None:
        """Replace ids of an audio row in place after all its streams are sampled; see `replace_first`."""


def kept_ids(logits: Sequence[float], ranked: Sequence[int], limits: CodeSampling) -> dict[int, float]:
    """Return the ids that top-k and top-p keep, with their logits; `ranked` has the most probable one first."""
    if limits.temperature == 0:
        return {token: logits[token] for token in ranked}
    ranked = ranked[: limits.top_k or None]
    weights = [math.exp((logits[token] - logits[ranked[0]]) / limits.temperature) for token in ranked]
    # mass of all more probable ids
    total = math.fsum(weights)
    before = accumulate(weights, initial=0.0)
    return {t: logits[t] for t, mass in zip(ranked, before, strict=False) if mass < limits.top_p * total}
